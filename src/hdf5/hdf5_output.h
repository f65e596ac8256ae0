// An HDF5 file being written whose disk may fill up at any moment.
//
// HDF5 does not survive a failed flush: the file's identifier stays behind with its memory freed,
// and the library reads it again later, at the latest when the process exits. So this file driver
// never reports a failed write to HDF5; it remembers the first errno, drops what follows, and lets
// HDF5 close in peace. The caller asks error() after each step. The file is an ordinary HDF5 file.
#pragma once

#include <hdf5.h>

#include <string>

namespace maniple {

class Hdf5Output {
 public:
  // Creates or empties `path`. Ask error(), then id().
  explicit Hdf5Output(const std::string& path);
  ~Hdf5Output();
  Hdf5Output(const Hdf5Output&) = delete;
  Hdf5Output& operator=(const Hdf5Output&) = delete;

  hid_t id() const { return file_; }    // negative if HDF5 refused
  int error() const { return error_; }  // the first errno, or 0
  // Negative if HDF5 failed for a reason of its own. What was opened in the file is closed with it.
  herr_t close();

 private:
  int error_ = 0;
  hid_t driver_ = -1, file_ = -1;
};

}  // namespace maniple
