# Compiles for WebAssembly by PyPI's ziglang: Clang, wasm-ld and the C library of WASI in one package.
# FASTNN_PYTHON is the interpreter that has it.
set(CMAKE_SYSTEM_NAME WASI)
set(CMAKE_SYSTEM_PROCESSOR wasm32)
set(CMAKE_CXX_COMPILER ${FASTNN_PYTHON} -m ziglang c++)
set(CMAKE_CXX_COMPILER_TARGET wasm32-wasi)
# A check of the compiler would link a program, for which zig would compile a whole C++ library first.
set(CMAKE_CXX_COMPILER_ID Clang)
set(CMAKE_CXX_COMPILER_ID_RUN TRUE)
set(CMAKE_CXX_COMPILER_FORCED TRUE)
