# The imported target maniple::torch: LibTorch as the PyPI wheel ships it; its CPU part only, unless
# MANIPLE_CUDA is on.
# MANIPLE_TORCH_PREFIX is the folder that holds torch/ (a site-packages folder); scripts/ set it.
set(MANIPLE_TORCH_PREFIX "" CACHE PATH "Folder that contains torch/ (the wheel, as unpacked by pip)")
if(NOT MANIPLE_TORCH_PREFIX)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(Python3_FOUND)
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -c
              "import importlib.util,os;s=importlib.util.find_spec('torch');print(os.path.dirname(os.path.dirname(s.origin)) if s else '')"
      OUTPUT_VARIABLE MANIPLE_TORCH_PREFIX OUTPUT_STRIP_TRAILING_WHITESPACE)
  endif()
endif()
set(_torch ${MANIPLE_TORCH_PREFIX}/torch)
if(NOT EXISTS ${_torch}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "no LibTorch at '${_torch}'. Run scripts/test, which installs one, or pass "
                      "-DMANIPLE_TORCH_PREFIX=<site-packages folder with torch/>")
endif()
add_library(maniple_torch INTERFACE)
add_library(maniple::torch ALIAS maniple_torch)
target_include_directories(maniple_torch SYSTEM INTERFACE ${_torch}/include
                                                          ${_torch}/include/torch/csrc/api/include)
target_link_directories(maniple_torch INTERFACE ${_torch}/lib)
target_link_libraries(maniple_torch INTERFACE -Wl,--no-as-needed torch_cpu c10 -Wl,--as-needed)
file(GLOB _cuda_dirs ${MANIPLE_TORCH_PREFIX}/nvidia/*/lib ${MANIPLE_TORCH_PREFIX}/nvidia/*/*/lib)
foreach(_dir ${_torch}/lib ${_cuda_dirs})
  target_link_options(maniple_torch INTERFACE "-Wl,-rpath,${_dir}" "-Wl,-rpath-link,${_dir}")
endforeach()
if(MANIPLE_CUDA)
  if(NOT EXISTS ${_torch}/lib/libtorch_cuda.so)
    message(FATAL_ERROR "the LibTorch at '${_torch}' has no CUDA part; scripts/build cuda installs one")
  endif()
  # NCCL comes with LibTorch, as a wheel of its own. The kernels are found at run time by the
  # libraries' constructors, so both are linked whether or not a symbol is used.
  set(_nccl ${MANIPLE_TORCH_PREFIX}/nvidia/nccl)
  target_include_directories(maniple_torch SYSTEM INTERFACE ${_nccl}/include
                                                            ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_link_libraries(maniple_torch INTERFACE -Wl,--no-as-needed torch_cuda c10_cuda
                                                -Wl,--as-needed ${_nccl}/lib/libnccl.so.2)
endif()
# What the wheel lacks: its headers of {fmt} hide the system's, but it has no library of them; and its
# MKL must be called once before there are threads. Nothing names vml.cpp, so the linker is told to.
add_library(maniple_torch_support STATIC cmake/fmt.cpp cmake/vml.cpp)
target_include_directories(maniple_torch_support SYSTEM PRIVATE ${_torch}/include)
target_link_libraries(maniple_torch INTERFACE maniple_torch_support)
target_link_options(maniple_torch INTERFACE -Wl,--undefined=maniple_vml_has_chosen)
# at::parallel_for is a header: without -fopenmp it is a serial loop. The wheel brings its libgomp.
target_compile_options(maniple_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
file(GLOB _gomp ${_torch}/lib/libgomp*.so*)
target_link_libraries(maniple_torch INTERFACE ${_gomp})
if(NOT _gomp)
  target_link_options(maniple_torch INTERFACE -fopenmp)
endif()
