// Which communicator of the ring a process group is, and which channel a peer.

#pragma once

#include "ring.hpp"

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace ftrain {

using c10d::ProcessGroup;
using GroupPtr = c10::intrusive_ptr<ProcessGroup>;

struct Names {
  std::mutex mutex;
  // The weak reference keeps the address from being used again, so that a group made anew is a new one.
  std::unordered_map<ProcessGroup*, std::pair<c10::weak_intrusive_ptr<ProcessGroup>, uint32_t>> groups;
  std::unordered_map<uint64_t, uint32_t> channels;
  std::atomic<uint64_t> epoch{0};  // goes up when all are forgotten

  void forget() {
    std::lock_guard<std::mutex> lock(mutex);
    epoch.fetch_add(1);
    groups.clear();
    channels.clear();
  }
};
inline Names& names = *new Names();  // never destroyed: works may end after everything else

// Empty: unknown. The default group's ranks are not listed, nor those of a backend that has no options.
inline std::vector<uint64_t> members_of(ProcessGroup& group, uint32_t world_size) {
  const auto size = size_t(group.getSize());
  std::vector<uint64_t> members;
  try {
    for (const auto& device : group.getDeviceTypes()) {
      members = group.getBackend(device.type())->getBackendOptions()->global_ranks_in_group;
      break;
    }
  } catch (const std::exception&) {
  }
  if (members.size() == size) return members;
  members.clear();
  if (size == world_size)
    for (size_t rank = 0; rank < size; rank++) members.push_back(rank);
  return members;
}

inline uint32_t add_communicator(Ring& ring, ProcessGroup* its_group) {
  const auto group = GroupPtr::reclaim_copy(its_group);
  Header& header = *ring.header;
  const std::string name = group->getGroupName(), description = group->getGroupDesc();
  const std::vector<uint64_t> members = members_of(*group, header.world_size);
  const auto size = uint32_t(group->getSize());

  std::lock_guard<std::mutex> lock(names.mutex);
  if (auto found = names.groups.find(group.get()); found != names.groups.end()) return found->second.second;
  const uint32_t index = header.communicators.load(relaxed), at = header.members.load(relaxed);
  if (index == COMMUNICATORS_MAX) return NONE;
  Communicator& entry = ring.communicators[index];
  strncpy(entry.name, name.c_str(), sizeof(entry.name) - 1);
  strncpy(entry.description, description.c_str(), sizeof(entry.description) - 1);
  entry.size = size;
  entry.members_at = at;
  entry.members_known = !members.empty() && members.size() <= header.members_max - at;
  if (entry.members_known) {
    for (size_t i = 0; i < members.size(); i++) ring.members[at + i] = uint32_t(members[i]);
    header.members.store(at + size, relaxed);
  } else {
    header.missed_members.fetch_add(1, relaxed);
  }
  names.groups.try_emplace(group.get(), c10::weak_intrusive_ptr<ProcessGroup>(group), index);
  header.communicators.store(index + 1, release);
  return index;
}

// `group` is held by whoever calls.
inline uint32_t communicator_of(Ring& ring, ProcessGroup* group) {
  thread_local ProcessGroup* last = nullptr;
  thread_local uint32_t last_index = NONE;
  thread_local uint64_t last_epoch = 0;
  const uint64_t epoch = names.epoch.load(acquire);
  if (group == last && epoch == last_epoch) return last_index;
  uint32_t index = NONE;
  {
    std::lock_guard<std::mutex> lock(names.mutex);
    if (auto found = names.groups.find(group); found != names.groups.end()) index = found->second.second;
  }
  if (index == NONE) index = add_communicator(ring, group);
  if (index != NONE) last = group, last_index = index, last_epoch = epoch;
  return index;
}

inline int32_t global_rank(const Ring& ring, uint32_t communicator, int64_t rank) {
  if (communicator == NONE) return -1;
  const Communicator& entry = ring.communicators[communicator];
  if (rank < 0 || rank >= entry.size || !entry.members_known) return -1;
  return int32_t(ring.members[entry.members_at + rank]);
}

inline uint32_t channel_of(Ring& ring, uint32_t communicator, int32_t peer) {
  const uint64_t key = uint64_t(communicator) << 32 | uint32_t(peer);
  std::lock_guard<std::mutex> lock(names.mutex);
  if (auto found = names.channels.find(key); found != names.channels.end()) return found->second;
  const uint32_t index = ring.header->channels.load(relaxed);
  if (index == CHANNELS_MAX) return NONE;
  ring.channels[index].communicator = communicator;
  ring.channels[index].peer = peer;
  names.channels.emplace(key, index);
  ring.header->channels.store(index + 1, release);
  return index;
}

}  // namespace ftrain
