# fastnn._cuda, a second module: built where a GPU and a fit nvcc are found, never needed by the first.
set(FASTNN_CUDA AUTO CACHE STRING
    "Build the CUDA kernels: AUTO (where there is a GPU, and an nvcc for it), ON (or fail) or OFF")
set(FASTNN_CUDA_ARCHS "" CACHE STRING
    "Architectures in CMake's notation, such as 80-real;90; empty: the GPU present, else 80, 90 and PTX")
option(FASTNN_CUDA_WERROR "Treat the warnings of nvcc and of its host compiler as errors" OFF)

set(fastnn_csrc ${CMAKE_CURRENT_LIST_DIR}/../csrc)
include(${CMAKE_CURRENT_LIST_DIR}/cuda_choice.cmake)
if(NOT fastnn_cuda_why_not)
  set(CMAKE_CUDA_ARCHITECTURES "${fastnn_archs}")
  if(NOT CMAKE_CUDA_COMPILER AND "$ENV{CUDACXX}" STREQUAL "")
    set(ENV{CUDACXX} "${fastnn_nvcc}")
  endif()
  if(fastnn_cuda STREQUAL "AUTO")
    include(CheckLanguage)
    set(ENV{CUDAARCHS} "${fastnn_archs}")
    check_language(CUDA)  # looks whether it compiles and links, in a project of its own
    if(CMAKE_CUDA_COMPILER)
      find_package(CUDAToolkit QUIET)
      if(NOT TARGET CUDA::cudart_static)
        set(fastnn_cuda_why_not "the toolkit of ${fastnn_nvcc} has no static runtime library")
      else()  # does it compile kernels, too? This one has all that is written in PTX
        enable_language(CUDA)
        set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
        try_compile(
          fastnn_cuda_compiles ${CMAKE_BINARY_DIR}/cuda_probe ${fastnn_csrc}/gemm/cuda/product_tf32.cu
          CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${fastnn_csrc}" COMPILE_DEFINITIONS -DFASTNN_ISA=cuda
          CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON)
        unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
        if(NOT fastnn_cuda_compiles)
          set(fastnn_cuda_why_not "${fastnn_nvcc} does not compile them")
        endif()
      endif()
    else()
      set(fastnn_cuda_why_not "${fastnn_nvcc} does not compile and link")
    endif()
  endif()
endif()
fastnn_say_cuda_choice()
if(fastnn_cuda_why_not)
  return()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

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
set_target_properties(_cuda PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)  # as for _cpu
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
if(NOT APPLE)  # as for _cpu
  target_link_options(_cuda PRIVATE LINKER:--version-script=${exports})
  set_target_properties(_cuda PROPERTIES LINK_DEPENDS ${exports})
endif()

install(TARGETS _cuda DESTINATION fastnn)
