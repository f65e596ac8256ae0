// What every use of the HDF5 library here needs: handles that close themselves, one caller at a
// time, and its errors as text instead of on stderr.
#pragma once

#include <hdf5.h>

#include <mutex>
#include <string>
#include <utility>

namespace maniple {

// For the time of a group of HDF5 calls. HDF5 may be built without thread safety, and it prints its
// errors to stderr unless each thread asks it not to.
class Hdf5Scope {
 public:
  Hdf5Scope();
  ~Hdf5Scope();
  Hdf5Scope(const Hdf5Scope&) = delete;
  Hdf5Scope& operator=(const Hdf5Scope&) = delete;

 private:
  std::lock_guard<std::mutex> lock_;
  H5E_auto2_t print_ = nullptr;
  void* print_data_ = nullptr;
};

class Hdf5Handle {
 public:
  Hdf5Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Hdf5Handle() { this->close(); }
  Hdf5Handle(Hdf5Handle&& other) noexcept
      : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Hdf5Handle(const Hdf5Handle&) = delete;
  Hdf5Handle& operator=(const Hdf5Handle&) = delete;
  hid_t get() const { return id_; }
  herr_t close() {
    const herr_t result = id_ >= 0 ? close_(id_) : 0;
    id_ = -1;
    return result;
  }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// The innermost reason of the call that failed last; the system's text where there is one.
std::string hdf5_reason();

// File locks are of no use here (nobody reads a file before it is complete) and fail on many
// network file systems.
Hdf5Handle hdf5_file_access();

// A little-endian float of two bytes: sign bit 15, then the exponent, then `mantissa_bits`. bf16 has
// 7 of them, half precision 10.
Hdf5Handle hdf5_two_byte_float(size_t mantissa_bits);

}  // namespace maniple
