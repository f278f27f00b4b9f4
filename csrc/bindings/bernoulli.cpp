// bernoulli: torch's Bernoulli numbers, from a copy of its generator's state.
#include "ops/bernoulli/bernoulli.h"

#include <cstring>

#include "bindings/optimizer_group.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "dispatch/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// What torch.Generator.get_state() returns for the CPU: this, and a cached normal number, which is unchanged.
struct TorchState {
  uint64_t seed;
  int32_t left, seeded;  // left: 1 if the next number needs new words
  uint64_t next;
  uint64_t words[MersenneTwister::kWords];
};

TensorView state_of(const py::object& generator, py::object& holder) {
  holder = generator.attr("get_state")();
  const TensorView state = read_plain(holder.ptr());
  check<std::invalid_argument>(state.dtype == DType::u8 && state.is_contiguous() &&
                                   state.numel() >= static_cast<int64_t>(sizeof(TorchState)),
                               "bernoulli: expected a torch.Generator of the CPU");
  return state;
}

MersenneTwister twister_of(const TorchState& from) {
  MersenneTwister twister;
  for (int64_t i = 0; i < MersenneTwister::kWords; ++i)
    twister.words[i] = static_cast<uint32_t>(from.words[i]);
  twister.next = from.left == 1 ? MersenneTwister::kWords : static_cast<int64_t>(from.next);
  check<std::invalid_argument>(twister.next >= 0 && twister.next <= MersenneTwister::kWords,
                               "bernoulli: the generator's state has ", twister.next, " of ",
                               MersenneTwister::kWords, " words drawn");
  return twister;
}

void store(const MersenneTwister& twister, TorchState& to) {
  for (int64_t i = 0; i < MersenneTwister::kWords; ++i) to.words[i] = twister.words[i];
  to.next = static_cast<uint64_t>(twister.next);
  to.left = static_cast<int32_t>(MersenneTwister::kWords + 1 - twister.next);
}

// x.bernoulli_(p, generator=generator)
void bernoulli(const TensorView& x, double p, const py::object& generator) {
  check<std::invalid_argument>((x.dtype == DType::f32 || x.dtype == DType::f64) && x.is_contiguous(),
                               "bernoulli: expected a contiguous x of float32 or float64");
  check<std::invalid_argument>(p >= 0 && p <= 1, "bernoulli: expected 0 <= p <= 1, got ", p);
  if (x.numel() == 0) return;
  for (;;) {
    py::object holder, holder_now;
    const TensorView state = state_of(generator, holder);
    TorchState moved;
    std::memcpy(&moved, state.data, sizeof moved);
    MersenneTwister twister = twister_of(moved);
    {
      const KernelCall call(x.numel());
      cpu_kernels().bernoulli.draw(twister, p, x.data, x.dtype, x.numel());
    }
    // Another thread may have drawn in the meantime: its numbers are not drawn again.
    const TensorView now = state_of(generator, holder_now);
    if (std::memcmp(state.data, now.data, static_cast<size_t>(state.numel())) != 0) continue;
    store(twister, moved);
    std::memcpy(state.data, &moved, sizeof moved);
    generator.attr("set_state")(holder);
    return;
  }
}

}  // namespace

void register_bernoulli(py::module_& m) { m.def("bernoulli", &bernoulli); }

}  // namespace fastnn
