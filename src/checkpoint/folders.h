// The names in a checkpoints/ folder.
//   step-00001000                    a checkpoint, complete if it has a manifest.json
//   step-00001000.partial-<attempt>  being written, or left by a killed run; never loaded
//   step-00001000.replaced           set aside while a new one takes its name (only where the file
//                                    system cannot exchange two folders in one step)
//   latest                           a file with the name of the newest checkpoint
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace maniple {

enum class FolderKind { kCheckpoint, kPartial, kReplaced };

struct StepFolder {
  std::string name;
  int64_t step;
  FolderKind kind;
};

std::string step_folder_name(int64_t step);
// Ascending by step; empty if there is no such folder.
std::vector<StepFolder> list_step_folders(const std::string& root);
inline constexpr char kPartialSuffix[] = ".partial-";
inline constexpr char kReplacedSuffix[] = ".replaced";

}  // namespace maniple
