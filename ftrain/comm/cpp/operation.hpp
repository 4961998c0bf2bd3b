// One operation, from its entry to its exit.

#pragma once

#include "names.hpp"

#include <type_traits>

namespace ftrain {

// What is counted of a communicator's collectives, or of a channel's sends or receives, and their recent records.
struct Counts {
  Word *entered = nullptr, *completed = nullptr, *failed = nullptr, *queued = nullptr;
  Record* slots = nullptr;
  uint64_t slots_count = 1;
};

// Two words, so that a future's callback holds it without asking for memory.
struct Operation {
  enum : uint8_t { of_steps = 1, on_device = 2, direct = 4, receives = 8 };
  static constexpr uint16_t NOWHERE = 0xffff;
  static constexpr uint8_t NO_SLOT = 0xff;

  uint64_t id = 0;           // 0: not recorded
  uint32_t ring = 0;         // the number of the one that it was entered in
  uint16_t place = NOWHERE;  // its communicator, or its channel if it is direct; none: there was no room for it
  uint8_t slot = NO_SLOT;    // its second copy, if it has one
  uint8_t flags = of_steps;  // of_steps: what it waits for, the training waits for

  bool is(uint8_t flag) const { return flags & flag; }

  // None in a child of the process in which it was entered, nor once that goes on with another ring.
  Ring* its_ring() const {
    Ring* now = id == 0 ? nullptr : the_ring.load(acquire);
    return now != nullptr && now->number == ring ? now : nullptr;
  }

  Counts counts(Ring& in) const {
    if (place == NOWHERE) return {};
    if (is(direct)) {
      const bool back = is(receives);
      const uint64_t slots = RECENT / 2;
      Channel& channel = in.channels[place];
      Direction& direction = channel.directions[back];
      return {&direction.entered, &direction.completed, &channel.failed, &channel.queued[back],
              &in.channels_recent[place][back ? slots : 0], slots};
    }
    Communicator& all = in.communicators[place];
    return {&all.entered, &all.completed, &all.failed, &all.queued, in.recent[place], RECENT};
  }

  Record* recent(const Counts& counts) const { return slot == NO_SLOT ? nullptr : &counts.slots[slot]; }

  void go_outside() const {
    if (Ring* in = its_ring()) in->go_outside(now_ns(), is(of_steps));
  }

  void leave(bool did_fail, bool and_go_outside = false) const {
    Ring* in = its_ring();
    if (in == nullptr) return;
    const Counts counted = counts(*in);
    const uint64_t now = now_ns(), word = now | (did_fail ? FAILED : 0);
    in->records[id % RECORDS_MAX].leave(id, word);
    if (Record* copy = recent(counted)) copy->leave(id, word);
    if (did_fail) {
      in->header->failed.fetch_add(1, relaxed);
      if (counted.failed != nullptr) counted.failed->fetch_add(1, relaxed);
    }
    if (counted.completed != nullptr) counted.completed->fetch_add(1, release);
    if (and_go_outside) in->go_outside(now, is(of_steps));
  }

  void leave_and_go_outside(bool did_fail) const { leave(did_fail, true); }

  // Its device has come to it; once.
  void reach() const {
    Ring* in = its_ring();
    if (in == nullptr) return;
    const Counts counted = counts(*in);
    const uint64_t now = now_ns();
    in->records[id % RECORDS_MAX].reach(id, now);
    if (Record* copy = recent(counted)) copy->reach(id, now);
    if (counted.queued != nullptr) counted.queued->fetch_sub(1, release);
  }

  void note_wait() const {
    Ring* in = its_ring();
    if (in == nullptr) return;
    const uint64_t now = now_ns();
    if (is(of_steps)) in->begin_stretch(now, true);
    in->go_inside(now, is(of_steps));
    for (Record* record : {&in->records[id % RECORDS_MAX], recent(counts(*in))})
      if (record != nullptr && record->id.load(acquire) == id) record->facts.waited_ns = now;
  }
};
static_assert(sizeof(Operation) == 16 && std::is_trivially_copyable_v<Operation>);

// `flags`: as of the operation. One on a device is only queued, until `reach` tells that the device has come to it.
inline Operation enter(Ring& ring, Facts facts, uint64_t now, uint8_t flags) {
  Header& header = *ring.header;
  Operation operation;
  operation.ring = ring.number;
  operation.flags = flags;
  facts.thread = this_thread();
  facts.step = the_step.load(relaxed);
  if (facts.communicator == NONE) {
    header.missed_communicators.fetch_add(1, relaxed);
  } else if (!operation.is(Operation::direct)) {
    operation.place = uint16_t(facts.communicator);
  } else {
    facts.channel = channel_of(ring, facts.communicator, facts.root);
    if (facts.channel == NONE)
      header.missed_channels.fetch_add(1, relaxed);
    else
      operation.place = uint16_t(facts.channel);
  }
  const Counts counted = operation.counts(ring);
  const bool is_queued = operation.is(Operation::on_device);
  if (is_queued && counted.queued != nullptr) counted.queued->fetch_add(1);  // first: it never looks as if it took part
  const uint64_t gap = ring.go_inside(now, operation.is(Operation::of_steps));
  const uint64_t seq = counted.entered == nullptr ? 0 : counted.entered->fetch_add(1) + 1;
  operation.id = header.head.fetch_add(1) + 1;
  ring.records[operation.id % RECORDS_MAX].write(operation.id, seq, now, gap, facts, is_queued);
  if (counted.slots != nullptr) {
    const uint64_t slot = seq % counted.slots_count;
    if (counted.slots[slot].is_pending()) {
      header.missed_pending.fetch_add(1, relaxed);
    } else {
      counted.slots[slot].write(operation.id, seq, now, gap, facts, is_queued);
      operation.slot = uint8_t(slot);
    }
  }
  return operation;
}

}  // namespace ftrain
