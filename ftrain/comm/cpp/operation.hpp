// One operation, from its entry to its exit.

#pragma once

#include "names.hpp"

namespace ftrain {

struct Operation {
  uint64_t id = 0;                            // 0: not recorded
  Ring* ring = nullptr;                       // the one that it was entered in
  Record* recent = nullptr;                   // its second copy, if it has one
  Word *completed = nullptr, *failed = nullptr;  // null: no communicator, or no channel, to count it in
  bool of_steps = true;                       // what it waits for, the training waits for

  // Not in a child of the process in which it was entered, nor once that goes on with another ring.
  bool is_recorded() const { return ring != nullptr && the_ring.load(acquire) == ring; }

  void go_outside() const {
    if (is_recorded()) ring->go_outside(now_ns(), of_steps);
  }

  void leave(bool did_fail, bool and_go_outside = false) const {
    if (!is_recorded()) return;
    const uint64_t now = now_ns(), word = now | (did_fail ? FAILED : 0);
    ring->records[id % RECORDS_MAX].leave(id, word);
    if (recent != nullptr) recent->leave(id, word);
    if (did_fail) {
      ring->header->failed.fetch_add(1, relaxed);
      if (failed != nullptr) failed->fetch_add(1, relaxed);
    }
    if (completed != nullptr) completed->fetch_add(1, release);
    if (and_go_outside) ring->go_outside(now, of_steps);
  }

  void leave_and_go_outside(bool did_fail) const { leave(did_fail, true); }

  void note_wait() const {
    if (!is_recorded()) return;
    const uint64_t now = now_ns();
    if (of_steps) ring->begin_stretch(now, true);
    ring->go_inside(now, of_steps);
    for (Record* record : {&ring->records[id % RECORDS_MAX], recent})
      if (record != nullptr && record->id.load(acquire) == id) record->facts.waited_ns = now;
  }
};

inline Operation enter(Ring& ring, Facts facts, uint64_t now, bool send, bool receive, bool of_steps) {
  Header& header = *ring.header;
  Operation operation;
  operation.ring = &ring;
  operation.of_steps = of_steps;
  facts.thread = this_thread();
  facts.step = the_step.load(relaxed);
  Word* entered = nullptr;
  Record* slots = nullptr;
  uint64_t slots_count = RECENT;
  if (facts.communicator == NONE) {
    header.missed_communicators.fetch_add(1, relaxed);
  } else if (send || receive) {
    facts.channel = channel_of(ring, facts.communicator, facts.root);
    if (facts.channel == NONE) {
      header.missed_channels.fetch_add(1, relaxed);
    } else {
      Channel& channel = ring.channels[facts.channel];
      entered = &channel.directions[receive].entered;
      operation.completed = &channel.directions[receive].completed;
      operation.failed = &channel.failed;
      slots_count = RECENT / 2;
      slots = &ring.channels_recent[facts.channel][receive ? slots_count : 0];
    }
  } else {
    Communicator& communicator = ring.communicators[facts.communicator];
    entered = &communicator.entered;
    operation.completed = &communicator.completed;
    operation.failed = &communicator.failed;
    slots = ring.recent[facts.communicator];
  }
  const uint64_t gap = ring.go_inside(now, of_steps);
  const uint64_t seq = entered == nullptr ? 0 : entered->fetch_add(1) + 1;
  operation.id = header.head.fetch_add(1) + 1;
  ring.records[operation.id % RECORDS_MAX].write(operation.id, seq, now, gap, facts);
  if (slots != nullptr) {
    Record& slot = slots[seq % slots_count];
    if (slot.is_pending()) {
      header.missed_pending.fetch_add(1, relaxed);
    } else {
      slot.write(operation.id, seq, now, gap, facts);
      operation.recent = &slot;
    }
  }
  return operation;
}

}  // namespace ftrain
