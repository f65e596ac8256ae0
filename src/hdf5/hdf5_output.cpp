#include "hdf5/hdf5_output.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

namespace maniple {
namespace {

struct DriverInfo {
  int* error;
};

struct DriverFile {
  H5FD_t base;  // HDF5's part, first
  int fd;
  int* error;
  haddr_t end_of_allocation, end_of_file;
};

DriverFile& driver_file(H5FD_t* file) { return *reinterpret_cast<DriverFile*>(file); }
const DriverFile& driver_file(const H5FD_t* file) {
  return *reinterpret_cast<const DriverFile*>(file);
}

H5FD_t* open_file(const char* name, unsigned, hid_t access, haddr_t) {
  const auto* info = static_cast<const DriverInfo*>(H5Pget_driver_info(access));
  const int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    *info->error = errno;
    return nullptr;
  }
  return &(new DriverFile{{}, fd, info->error, 0, 0})->base;
}

herr_t close_file(H5FD_t* base) {
  DriverFile* file = &driver_file(base);
  if (close(file->fd) != 0 && *file->error == 0) *file->error = errno;
  delete file;
  return 0;
}

herr_t write_file(H5FD_t* base, H5FD_mem_t, hid_t, haddr_t address, size_t size,
                  const void* buffer) {
  DriverFile& file = driver_file(base);
  const char* from = static_cast<const char*>(buffer);
  file.end_of_file = std::max<haddr_t>(file.end_of_file, address + size);
  while (size > 0 && *file.error == 0) {
    const ssize_t count = pwrite(file.fd, from, size, static_cast<off_t>(address));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      *file.error = errno;
      break;
    }
    from += count;
    address += static_cast<haddr_t>(count);
    size -= static_cast<size_t>(count);
  }
  return 0;
}

herr_t read_file(H5FD_t* base, H5FD_mem_t, hid_t, haddr_t address, size_t size, void* buffer) {
  char* to = static_cast<char*>(buffer);
  while (size > 0) {
    const ssize_t count = pread(driver_file(base).fd, to, size, static_cast<off_t>(address));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return -1;
    if (count == 0) break;
    to += count;
    address += static_cast<haddr_t>(count);
    size -= static_cast<size_t>(count);
  }
  std::memset(to, 0, size);  // beyond the end
  return 0;
}

herr_t truncate_file(H5FD_t* base, hid_t, hbool_t) {
  DriverFile& file = driver_file(base);
  if (file.end_of_allocation == file.end_of_file) return 0;
  if (*file.error == 0 && ftruncate(file.fd, static_cast<off_t>(file.end_of_allocation)) != 0)
    *file.error = errno;
  file.end_of_file = file.end_of_allocation;
  return 0;
}

hid_t register_driver() {
  H5FD_class_t driver{};
#if H5_VERSION_GE(1, 13, 0)
  driver.version = H5FD_CLASS_VERSION;
  driver.value = static_cast<H5FD_class_value_t>(H5_VFD_RESERVED + 77);
#endif
  driver.name = "maniple-output";
  driver.maxaddr = (haddr_t{1} << 62) - 1;
  driver.fc_degree = H5F_CLOSE_STRONG;
  driver.fapl_size = sizeof(DriverInfo);
  driver.open = open_file;
  driver.close = close_file;
  driver.query = [](const H5FD_t*, unsigned long* flags) -> herr_t {
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_AGGREGATE_SMALLDATA;
    return 0;
  };
  driver.get_eoa = [](const H5FD_t* file, H5FD_mem_t) {
    return driver_file(file).end_of_allocation;
  };
  driver.set_eoa = [](H5FD_t* file, H5FD_mem_t, haddr_t address) -> herr_t {
    driver_file(file).end_of_allocation = address;
    return 0;
  };
  driver.get_eof = [](const H5FD_t* file, H5FD_mem_t) { return driver_file(file).end_of_file; };
  driver.read = read_file;
  driver.write = write_file;
  driver.truncate = truncate_file;
  const H5FD_mem_t all_alike[] = H5FD_FLMAP_DICHOTOMY;
  std::copy(std::begin(all_alike), std::end(all_alike), std::begin(driver.fl_map));
  return H5FDregister(&driver);
}

// Metadata stays in memory until it is written at the end: once writes are dropped, nothing that
// HDF5 believes written may have to be read again.
void never_evict(hid_t access) {
  H5AC_cache_config_t config;
  config.version = H5AC__CURR_CACHE_CONFIG_VERSION;
  if (H5Pget_mdc_config(access, &config) < 0) return;
  config.evictions_enabled = false;
  config.incr_mode = H5C_incr__off;
  config.flash_incr_mode = H5C_flash_incr__off;
  config.decr_mode = H5C_decr__off;
  H5Pset_mdc_config(access, &config);
}

}  // namespace

Hdf5Output::Hdf5Output(const std::string& path) : driver_(register_driver()) {
  if (driver_ < 0) return;
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  const DriverInfo info{&error_};
  H5Pset_driver(access, driver_, &info);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
#if H5_VERSION_GE(1, 10, 7)
  H5Pset_file_locking(access, false, true);
#endif
  never_evict(access);
  file_ = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  H5Pclose(access);
}

Hdf5Output::~Hdf5Output() {
  close();
  if (driver_ >= 0) H5FDunregister(driver_);
}

herr_t Hdf5Output::close() {
  const herr_t result = file_ >= 0 ? H5Fclose(file_) : 0;
  file_ = -1;
  return result;
}

}  // namespace maniple
