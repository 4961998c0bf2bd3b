// The layout of the ring, as ring.py tells it, and what is written into it as one.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <ctime>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ftrain {

using Word = std::atomic<uint64_t>;

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;
constexpr auto release = std::memory_order_release;

inline uint64_t clock_ns(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

inline uint64_t now_ns() { return clock_ns(CLOCK_MONOTONIC); }

// Of the calling thread.
inline uint64_t processor_ns() { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

inline uint32_t this_thread() {
  thread_local const uint32_t thread = uint32_t(syscall(SYS_gettid));
  return thread;
}

constexpr uint64_t PENDING = 1ull << 63, FAILED = 1ull << 62;
constexpr uint32_t NONE = ~0u;
constexpr uint32_t COMMUNICATORS_MAX = 128, CHANNELS_MAX = 256, MARKS_MAX = 512, RECENT = 8, RECORDS_MAX = 4096;
constexpr uint16_t NO_DTYPE = 0xffff;
constexpr uint64_t BLOCKS = ~0ull;  // instead of a stretch's processor time

struct Header {
  char magic[8];
  uint32_t version, kind, pid, rank, local_rank, world_size, generation;
  uint32_t communicators_max, channels_max, marks_max, recent, records_max, members_max, unused;
  uint64_t started_ns;
  char unused_too[56];
  Word head, marks, last_exit_ns;
  std::atomic<int64_t> inside;
  Word waited_ns, missed_communicators, missed_channels, missed_pending, missed_members, failed;
  std::atomic<uint32_t> communicators, channels, members, closed;
  char unused_rest[4096 - 128 - 10 * 8 - 4 * 4];
};
static_assert(sizeof(Header) == 4096 && offsetof(Header, started_ns) == 64 && offsetof(Header, head) == 128);

struct Communicator {
  char name[128], description[64];
  uint32_t size, members_at, members_known, unused;
  Word entered, completed, failed;
  Word queued;  // of those entered, how many its device has not reached
  char unused_rest[16];
};
static_assert(sizeof(Communicator) == 256 && offsetof(Communicator, queued) == 232);

struct Direction {
  Word entered, completed;
};

struct Channel {
  uint32_t communicator;
  int32_t peer;
  Direction directions[2];  // sends, receives
  Word failed;
  Word queued[2];  // as of a communicator
};
static_assert(sizeof(Channel) == 64 && offsetof(Channel, queued) == 48);

struct Mark {
  Word number;
  int64_t step;
  uint64_t at_ns, waited_ns, head, processor_ns;
  char unused[16];
};
static_assert(sizeof(Mark) == 64);

struct Facts {  // of one operation, all known at its entry
  uint64_t bytes = 0, elements = 0;
  int64_t step = -1;
  uint64_t waited_ns = 0;
  uint32_t communicator = NONE, channel = NONE;
  uint16_t op = 0, dtype = NO_DTYPE;
  int32_t root = -1, tag = 0;
  uint32_t thread = 0;
};

struct Record {
  Word id;
  uint64_t seq, enter_ns;
  Word exit;
  uint64_t gap_ns;
  Facts facts;
  Word reached;  // 0: no device has a part in it; as `exit`, while the device has not reached it; then when it did
  char unused[24];

  void write(uint64_t new_id, uint64_t new_seq, uint64_t now, uint64_t gap, const Facts& new_facts, bool on_device) {
    id.store(0, relaxed);
    std::atomic_thread_fence(release);
    exit.store(new_id | PENDING, relaxed);
    reached.store(on_device ? new_id | PENDING : 0, relaxed);
    seq = new_seq;
    enter_ns = now;
    gap_ns = gap;
    facts = new_facts;
    id.store(new_id, release);
  }

  // The word holds the id: an exit that comes after the slot was given to another operation changes nothing.
  void leave(uint64_t its_id, uint64_t word) {
    uint64_t expected = its_id | PENDING;
    exit.compare_exchange_strong(expected, word, release, relaxed);
  }

  void reach(uint64_t its_id, uint64_t now) {
    uint64_t expected = its_id | PENDING;
    reached.compare_exchange_strong(expected, now, release, relaxed);
  }

  bool is_pending() const { return exit.load(relaxed) & PENDING; }
};
static_assert(sizeof(Record) == 128 && offsetof(Record, facts) == 40 && offsetof(Record, reached) == 96);

struct Ring {
  const uint32_t number;  // 1, 2, ... of this process
  Header* header;
  Communicator* communicators;
  Channel* channels;
  Mark* marks;
  Record (*recent)[RECENT];
  Record (*channels_recent)[RECENT];
  Record* records;
  uint32_t* members;
  struct {
    Word begun_ns{0}, processor_ns{BLOCKS};
    std::atomic<uint32_t> thread{0};
  } stretch;
  // Of the operations of steps only: how many are under way, and when the last of them ended.
  std::atomic<int64_t> under_way{0};
  Word last_end_ns{0};
  std::atomic<uint32_t> marker{0};  // the thread that marks steps; 0: none was marked
  Word used[COMMUNICATORS_MAX]{};   // by that thread last in this step, counted from 1

  Ring(char* at, uint32_t its_number) : number(its_number), header(reinterpret_cast<Header*>(at)) {
    at += sizeof(Header);
    at = take(at, communicators, COMMUNICATORS_MAX);
    at = take(at, channels, CHANNELS_MAX);
    at = take(at, marks, MARKS_MAX);
    at = take(at, recent, COMMUNICATORS_MAX);
    at = take(at, channels_recent, CHANNELS_MAX);
    at = take(at, records, RECORDS_MAX);
    members = reinterpret_cast<uint32_t*>(at);
  }

  // Gives its memory back, but not its addresses: a work that ends late may still write there, and harms nobody.
  void leave_empty() {
    const size_t size = reinterpret_cast<char*>(members + header->members_max) - reinterpret_cast<char*>(header);
    mmap(header, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }

  template <typename T>
  static char* take(char* at, T*& table, size_t count) {
    table = reinterpret_cast<T*>(at);
    return at + count * sizeof(T);
  }

  // Whether an operation that this thread enters is part of the steps: it is the thread that marks them, or has used
  // the communicator in this step or the last one itself, as a hook's callbacks do. Others do their work beside the
  // training (a checkpoint that is written, a monitor): while they wait, the training does not.
  bool is_of_steps(uint32_t communicator) {
    const uint32_t thread = marker.load(relaxed);
    if (thread == 0) return true;
    const uint64_t step = header->marks.load(relaxed) + 1;
    Word* last = communicator == NONE ? nullptr : &used[communicator];
    if (thread != this_thread()) return last != nullptr && last->load(relaxed) + 1 >= step;
    if (last != nullptr) last->store(step, relaxed);
    return true;
  }

  // Returns for how long the process had been outside of all operations.
  uint64_t go_inside(uint64_t now, bool of_steps) {
    if (of_steps) under_way.fetch_add(1);
    if (header->inside.fetch_add(1) > 0) return 0;
    const uint64_t left = header->last_exit_ns.load(relaxed);
    return now > left ? now - left : 0;
  }

  // A stretch is what a thread does from one entry, wait or mark to the next, of those that are of steps. What was under
  // way while nothing was computed, it has waited for: the one that ends is added up, another begins. Where the only
  // operation under way blocks its caller, no processor time has to be asked for.
  void begin_stretch(uint64_t now, bool blocks) {
    const bool inside = under_way.load() > 0, covers = !blocks || inside;
    const uint64_t begun = stretch.begun_ns.load(relaxed), before = stretch.processor_ns.load(relaxed);
    const uint64_t processor = covers || before != BLOCKS ? processor_ns() : BLOCKS;
    const uint64_t left = inside ? now : last_end_ns.load(relaxed);
    uint64_t waited = begun != 0 && left > begun ? left - begun : 0;
    if (waited > 0 && before != BLOCKS && stretch.thread.load(relaxed) == this_thread()) {
      const uint64_t computed = processor - before;
      waited = std::min(waited, now - begun > computed ? now - begun - computed : 0);
    }
    if (waited > 0) header->waited_ns.fetch_add(waited, relaxed);
    stretch.begun_ns.store(now, relaxed);
    stretch.processor_ns.store(covers ? processor : BLOCKS, relaxed);
    stretch.thread.store(this_thread(), relaxed);
  }

  void go_outside(uint64_t now, bool of_steps) {
    if (of_steps) {
      last_end_ns.store(now, relaxed);
      under_way.fetch_sub(1);
    }
    header->last_exit_ns.store(now, relaxed);
    header->inside.fetch_sub(1);
  }
};

inline std::atomic<Ring*> the_ring{nullptr};  // null: nothing is recorded
inline std::atomic<int64_t> the_step{-1};

}  // namespace ftrain
