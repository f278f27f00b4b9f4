# fastnn._cuda, a second module: built where nvcc is found, never needed by the first.
set(FASTNN_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO (where nvcc is found), ON (or fail) or OFF")
set(FASTNN_CUDA_ARCHS "" CACHE STRING
    "Architectures in CMake's notation, such as 80-real;90; empty: the GPU present, else 80, 90 and PTX")
option(FASTNN_CUDA_WERROR "Treat the warnings of nvcc and of its host compiler as errors" OFF)

string(TOUPPER "${FASTNN_CUDA}" fastnn_cuda)
if(NOT fastnn_cuda MATCHES "^(AUTO|ON|OFF|TRUE|FALSE|1|0)$")
  message(FATAL_ERROR "FASTNN_CUDA=${FASTNN_CUDA}: expected AUTO, ON or OFF")
endif()
if(fastnn_cuda MATCHES "^(OFF|FALSE|0)$")
  return()
endif()

# Compute capabilities of the GPUs present, as CMake writes architectures; empty without one.
function(detect_gpus result)
  set(${result} "" PARENT_SCOPE)
  find_program(FASTNN_NVIDIA_SMI nvidia-smi)
  if(NOT FASTNN_NVIDIA_SMI)
    return()
  endif()
  execute_process(
    COMMAND ${FASTNN_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE found ERROR_QUIET RESULT_VARIABLE status OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(status EQUAL 0 AND found MATCHES "^[0-9.\n]+$")
    string(REPLACE "." "" found "${found}")
    string(REPLACE "\n" ";" found "${found}")
    list(REMOVE_DUPLICATES found)
    list(FILTER found EXCLUDE REGEX "^[1-7].$")  # the kernels of matrix products need 80
    list(TRANSFORM found APPEND "-real")
    set(${result} "${found}" PARENT_SCOPE)
  endif()
endfunction()

set(fastnn_archs "${FASTNN_CUDA_ARCHS}")
if(NOT fastnn_archs)
  detect_gpus(fastnn_archs)
endif()
if(NOT fastnn_archs)
  set(fastnn_archs 80-real 90)  # 90 without -real: machine code and PTX
endif()
set(CMAKE_CUDA_ARCHITECTURES "${fastnn_archs}")

if(fastnn_cuda STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)  # looks whether nvcc is there and compiles
  if(NOT CMAKE_CUDA_COMPILER)
    message(STATUS "No working nvcc: fastnn is built without CUDA kernels")
    return()
  endif()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
message(STATUS "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${fastnn_archs}")

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)

file(GLOB cuda_kernel_sources CONFIGURE_DEPENDS csrc/core/cuda/*.cu csrc/gemm/cuda/*.cu csrc/ops/*/*.cu)
add_library(cuda_kernels OBJECT ${cuda_kernel_sources})
target_include_directories(cuda_kernels PRIVATE csrc)
target_compile_definitions(cuda_kernels PRIVATE FASTNN_ISA=cuda)
target_compile_options(
  cuda_kernels
  PRIVATE -O3 -Xcompiler=-Wall,-Wextra $<$<BOOL:${FASTNN_CUDA_WERROR}>:-Werror=all-warnings -Xcompiler=-Werror>)

file(GLOB cuda_binding_sources CONFIGURE_DEPENDS csrc/bindings/cuda/*.cpp)
pybind11_add_module(
  _cuda MODULE ${cuda_binding_sources} csrc/bindings/optimizer_group.cpp
  csrc/bindings/tensor_caster.cpp csrc/core/check.cpp
  $<TARGET_OBJECTS:cuda_kernels>)
target_include_directories(_cuda PRIVATE csrc)
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>
                                     $<$<BOOL:${FASTNN_CUDA_WERROR}>:-Werror>)
string(REPLACE ";" ", " fastnn_archs_text "${fastnn_archs}")
target_compile_definitions(
  _cuda
  PRIVATE FASTNN_ISA=cuda FASTNN_COMPILER="NVIDIA ${CMAKE_CUDA_COMPILER_VERSION}"
          FASTNN_CUDA_BUILT_FOR="${fastnn_archs_text}")
# The static runtime: a second one in the process would have to be found, and to be torch's version.
set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)

install(TARGETS _cuda DESTINATION fastnn)
