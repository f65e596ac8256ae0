// What a fuzz target provides; driver.cpp mutates the seeds and calls it. A parser of outside bytes
// must end in a result or in an Error with a user's exit code (65, 66, 78), whatever the bytes:
// anything else, InternalError and std::bad_alloc included, is a finding, and so are 20 seconds.
//
//   fuzz_manifest            the seeded run of CTest: a few thousand inputs, always the same ones
//   fuzz_manifest 1000000 7  so many inputs of seed 7
//   fuzz_manifest 1 7 1234   input 1234 of seed 7, kept as the file finding-1234 (after a crash)
//   fuzz_manifest FILE...    these inputs, as a finding left them
#pragma once

#include <string>
#include <vector>

namespace maniple {

std::vector<std::string> fuzz_seeds();       // valid inputs
std::vector<std::string> fuzz_dictionary();  // words of the format
void fuzz_one(const std::string& input);     // throws what the parser throws

}  // namespace maniple
