// How far a device is in what was queued on it.
//
// A call on CUDA queues its kernels and returns, often long before the device gets to them: a rank whose device hangs in
// its own computing has called what the others wait for, like all of them, and takes no part in it. So a point is set in
// the device's queue before the call (and after it, where torch gives no work to ask): an event without timing, as torch
// itself sets with each operation. It goes through c10's own interface to devices, so that no CUDA is needed to build it.
//
// Why not torch's flight recorder, which knows "scheduled" and "started": it does so with TORCH_NCCL_ENABLE_TIMING=1
// only, whose events keep kernels from overlapping (pytorch issue 143890); a dump copies all its 2,000 entries under the
// lock that each operation takes, and then asks events that it only borrows and whose works may be gone; and operations
// within a coalesced group have no state there.

#pragma once

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace ftrain {

// For tests: a device on which everything is done at once, until it is frozen.
struct SimulatedDevice {
  std::atomic<bool> on{false};
  std::atomic<uint64_t> queued{0}, done{~0ull};

  void freeze(bool frozen) { done.store(frozen ? queued.load() : ~0ull); }
};
inline SimulatedDevice simulated;

// Where a call goes: a stream of a device; none: the simulated one.
using Queue = std::optional<c10::Stream>;

inline Queue current_queue(std::optional<c10::Device> device) {
  if (simulated.on.load(std::memory_order_relaxed)) return std::nullopt;
  const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
  return cuda.getStream(device ? *device : cuda.getDevice());
}

// What is called then belongs to a graph: it is no operation yet, and nothing that it gives may be asked.
inline bool is_capturing(const Queue& queue) {
  return queue && c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).isStreamCapturing(*queue);
}

// Events that are made once: to make one, or to destroy it, may wait for the device.
class Events {
 public:
  c10::Event take(const c10::Stream& stream) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (!spare_.empty()) {
        c10::Event event = std::move(spare_.back());
        spare_.pop_back();
        if (event.device_index() == stream.device_index()) return event;
        others_.push_back(std::move(event));
      }
      spare_.swap(others_);
    }
    return c10::Event(stream.device_type());
  }

  void give_back(c10::Event event) {
    std::lock_guard<std::mutex> lock(mutex_);
    spare_.push_back(std::move(event));
  }

 private:
  std::mutex mutex_;
  std::vector<c10::Event> spare_, others_;
};
inline Events& events = *new Events();  // never destroyed: the driver may be gone by then

// A place in a queue. Set by one thread, and asked by one, after it was set.
class Point {
 public:
  Point() = default;
  Point(const Point&) = delete;
  Point& operator=(const Point&) = delete;
  ~Point() {
    if (event_) events.give_back(std::move(*event_));
  }

  void set(const Queue& queue) {
    if (!queue) {
      number_ = simulated.queued.fetch_add(1) + 1;
      return;
    }
    event_ = events.take(*queue);
    event_->record(*queue);
  }

  bool is_passed() const { return event_ ? event_->query() : number_ <= simulated.done.load(); }

 private:
  std::optional<c10::Event> event_;
  uint64_t number_ = 0;
};

}  // namespace ftrain
