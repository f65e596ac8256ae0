#include "hdf5/handle.h"

namespace maniple {
namespace {

std::mutex& one_caller() {
  // A damaged file can leave the library with objects that it cannot close at exit, of which it
  // complains. All files are closed by their owners.
  [[maybe_unused]] static const herr_t at_exit = H5dont_atexit();
  static std::mutex one;
  return one;
}

}  // namespace

Hdf5Scope::Hdf5Scope() : lock_(one_caller()) {
  H5Eget_auto2(H5E_DEFAULT, &print_, &print_data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

Hdf5Scope::~Hdf5Scope() { H5Eset_auto2(H5E_DEFAULT, print_, print_data_); }

std::string hdf5_reason() {
  std::string reason;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* error, void* text) -> herr_t {
        auto& reason = *static_cast<std::string*>(text);
        if (reason.empty() && error->desc) reason = error->desc;
        return 0;
      },
      &reason);
  static const std::string kMarker = "error message = '";
  const size_t marker = reason.find(kMarker);
  if (marker != std::string::npos) {
    const size_t first = marker + kMarker.size();
    reason = reason.substr(first, reason.find('\'', first) - first);
  }
  return reason.empty() ? "unknown HDF5 error" : reason;
}

Hdf5Handle hdf5_file_access() {
  Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
#if H5_VERSION_GE(1, 10, 7)
  H5Pset_file_locking(access.get(), false, true);
#endif
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
  return access;
}

Hdf5Handle hdf5_two_byte_float(size_t mantissa_bits) {
  const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
  const size_t exponent_bits = 15 - mantissa_bits;
  H5Tset_fields(type, 15, mantissa_bits, exponent_bits, 0, mantissa_bits);
  H5Tset_precision(type, 16);
  H5Tset_size(type, 2);
  H5Tset_ebias(type, (size_t{1} << (exponent_bits - 1)) - 1);
  return {type, H5Tclose};
}

}  // namespace maniple
