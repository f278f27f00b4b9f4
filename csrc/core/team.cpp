#include "core/team.h"

#include "core/barrier.h"

namespace fastnn {

namespace {

thread_local TeamMember* current_member = nullptr;
thread_local Barrier own_barrier;

}  // namespace

Team::Team() : barrier_(&own_barrier) {}
bool Team::failed() const { return failed_.load(std::memory_order_relaxed); }
void Team::fail() { failed_.store(true, std::memory_order_relaxed); }
int64_t Team::waited() const { return waited_.load(std::memory_order_relaxed); }

TeamMember::TeamMember(Team& team, int64_t member_index, int64_t member_count)
    : index(member_index), count(member_count), team_(team) {
  current_member = this;
  if (index == 0) team_.scratch_ = scratch_buffers();
  barrier();
}

TeamMember::~TeamMember() { current_member = nullptr; }

TeamMember* team_member() { return current_member && !current_member->sharing_ ? current_member : nullptr; }

void TeamMember::barrier() {
  if (count == 1) return;
  if (const int64_t waited = team_.barrier_->wait(count))
    team_.waited_.fetch_add(waited / (count - 1), std::memory_order_relaxed);
}

void TeamMember::meet() {
  barrier();
  if (team_.failed()) throw_out_of_memory();
}

void* TeamMember::shared(Scratch slot, size_t bytes) {
  ScratchBuffer& buffer = team_.scratch_[static_cast<int>(slot)];
  if (!buffer.holds(bytes)) {
    barrier();  // before it, all have read it; after it, none uses the old memory
    run_share([&] {
      if (index == 0) buffer.grow(bytes);
    });
  }
  return buffer.data();
}

int64_t team_threads() {
  if (!current_member) return 0;
  return current_member->sharing_ ? 1 : current_member->count;
}

int64_t team_waited() { return current_member ? current_member->team_.waited() : 0; }

bool leads_team() {
  const TeamMember* const member = team_member();
  return !member || member->index == 0;
}

void wait_for_team() {
  if (TeamMember* const member = team_member()) member->barrier();
}

void* shared_scratch(Scratch slot, size_t bytes) {
  TeamMember* const member = team_member();
  return member ? member->shared(slot, bytes) : thread_scratch(slot, bytes);
}

}  // namespace fastnn
