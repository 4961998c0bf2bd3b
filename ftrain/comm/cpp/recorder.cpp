// The recorder: every operation of every process group of this process, written to the ring (ring.py has its layout).
//
// torch sends each collective, send and receive through an operator c10d::NAME of its dispatcher, whatever the backend
// and whoever asks for it: the user, DDP's reducer, FSDP, DTensor, functional collectives. install() puts a wrapper
// round each of these kernels: it notes the entry, calls the kernel, and sees to it that the exit is noted.
//
// How the exit is seen:
//   a future     its callback notes it (gloo's collectives);
//   none         the work is wrapped, and the end of wait() is taken (gloo's send, receive, reduce_scatter);
//   on CUDA      the call, wait() and the future only queue kernels, so one thread asks the device, once in a millisecond,
//                whether it has come to the operation (device.hpp), and whether it is done with it (works.hpp).
//
// Nothing here is waited for: all tables are fixed, counters are atomic, and no lock is held while torch is called.
// Nothing throws into the caller. In a process forked from this one nothing is recorded. Build: library.py.

#include "works.hpp"

#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>

namespace {

using namespace ftrain;
using c10::DispatchKey;
using c10::IValue;
using c10::OperatorHandle;
using torch::jit::Stack;

// What this thread has called within a group that is not closed (batch_isend_irecv): its end gives one work for all.
thread_local struct {
  bool open = false;
  std::vector<WatchedPtr> watched;
} coalescing;

// ---- the wrappers

enum class Kind { collective, call, send, receive };  // call: its end is the operation's

struct Op {
  const char* name;
  uint16_t number;  // of ftrain_launcher.detect.records.Op
  Kind kind;
  const char* payload;  // the argument that holds this rank's own part
  const char* root;     // the argument that names a root or a peer, in the group's numbers
};

constexpr Op OPS[] = {
    {"allreduce_", 1, Kind::collective, "tensors", nullptr},
    {"allreduce_coalesced_", 2, Kind::collective, "tensors", nullptr},
    {"broadcast_", 3, Kind::collective, "tensors", "root_rank"},
    {"reduce_", 4, Kind::collective, "tensors", "root_rank"},
    {"allgather_", 5, Kind::collective, "input_tensors", nullptr},
    {"_allgather_base_", 6, Kind::collective, "input_tensor", nullptr},
    {"allgather_coalesced_", 7, Kind::collective, "input_list", nullptr},
    {"allgather_into_tensor_coalesced_", 8, Kind::collective, "inputs", nullptr},
    {"gather_", 9, Kind::collective, "input_tensors", "root_rank"},
    {"scatter_", 10, Kind::collective, "output_tensors", "root_rank"},
    {"reduce_scatter_", 11, Kind::collective, "output_tensors", nullptr},
    {"_reduce_scatter_base_", 12, Kind::collective, "output_tensor", nullptr},
    {"reduce_scatter_tensor_coalesced_", 13, Kind::collective, "outputs", nullptr},
    {"alltoall_base_", 14, Kind::collective, "input", nullptr},
    {"alltoall_", 15, Kind::collective, "input_tensors", nullptr},
    {"barrier", 16, Kind::collective, nullptr, nullptr},
    {"monitored_barrier_", 17, Kind::call, nullptr, nullptr},
    {"send", 18, Kind::send, "tensors", "dst"},
    {"recv_", 19, Kind::receive, "tensors", "src"},
    {"recv_any_source_", 20, Kind::receive, "tensors", nullptr},
};

constexpr DispatchKey KEYS[] = {DispatchKey::CPU, DispatchKey::SparseCPU, DispatchKey::CUDA, DispatchKey::SparseCUDA};

void add_payload(const IValue& payload, Facts& facts) {
  const auto add = [&facts](const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    facts.elements += uint64_t(tensor.numel());
    facts.bytes += uint64_t(tensor.numel()) * tensor.element_size();  // as if dense, of a sparse one
    if (facts.dtype == NO_DTYPE) facts.dtype = uint16_t(tensor.scalar_type());
  };
  if (payload.isTensor()) add(payload.toTensor());
  if (payload.isList())
    for (const IValue& one : payload.toListRef())
      if (one.isTensor()) add(one.toTensor());
}

std::optional<c10::Device> device_of(const IValue& payload) {
  if (payload.isTensor() && payload.toTensor().defined()) return payload.toTensor().device();
  if (payload.isList())
    for (const IValue& one : payload.toListRef())
      if (const auto device = device_of(one)) return device;
  return std::nullopt;
}

// As toCustomClass(), without what that asks about types: the operator's schema says which it is, and each question is a
// walk through memory that nobody has touched since the last operation. Not counted as a reference: the stack has one.
template <typename T>
T* look_at(const IValue& value) {
  const void* found = value.toObjectRef().getSlot(0).internalToPointer();
  return static_cast<T*>(static_cast<c10::intrusive_ptr_target*>(const_cast<void*>(found)));
}

using Kernel = std::decay_t<decltype(std::declval<OperatorHandle>().getComputedKernelForDispatchKey(DispatchKey::CPU))>;

class Wrapper final : public c10::OperatorKernel {
 public:
  Wrapper(Kernel kernel, const Op& op, const c10::FunctionSchema& schema, bool cuda)
      : kernel_(std::move(kernel)), op_(op), cuda_(cuda), arguments_(schema.arguments().size()) {
    for (size_t i = 0; i < arguments_; i++) {
      const std::string& name = schema.arguments()[i].name();
      if (name == "process_group") group_ = int(i);
      if (op.payload != nullptr && name == op.payload) payload_ = int(i);
      if (op.root != nullptr && name == op.root) root_ = int(i);
      if (name == "tag") tag_ = int(i);
      if (name == "async_op" || name == "asyncOp") async_ = int(i);
    }
    if (op.kind == Kind::send) direction_ = Operation::direct;
    if (op.kind == Kind::receive) direction_ = Operation::direct | Operation::receives;
  }

  void operator()(const OperatorHandle& handle, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    Ring* ring = the_ring.load(acquire);
    if (ring == nullptr) return kernel_.callBoxed(handle, keys, stack);
    const IValue* arguments = stack->data() + stack->size() - arguments_;
    if (cuda_ || simulated.on.load(relaxed)) return call_on_device(*ring, arguments, handle, keys, stack);
    const Operation operation = note_entry(*ring, arguments, /*on_device=*/false);
    if (operation.id == 0) return kernel_.callBoxed(handle, keys, stack);
    try {
      kernel_.callBoxed(handle, keys, stack);
    } catch (...) {
      operation.leave_and_go_outside(true);
      throw;
    }
    if (op_.kind == Kind::call) return operation.leave_and_go_outside(false);
    try {
      follow(operation, stack->back());
    } catch (...) {  // no memory: its end cannot be seen
      operation.leave_and_go_outside(false);
    }
  }

 private:
  bool blocks(const IValue* arguments) const {
    return op_.kind != Kind::collective || (async_ >= 0 && !arguments[async_].toBool());
  }

  Operation note_entry(Ring& ring, const IValue* arguments, bool on_device) const noexcept {
    try {
      const uint64_t now = now_ns();
      Facts facts;
      facts.op = op_.number;
      if (payload_ >= 0) add_payload(arguments[payload_], facts);
      if (tag_ >= 0) facts.tag = int32_t(arguments[tag_].toInt());
      facts.communicator = communicator_of(ring, look_at<ProcessGroup>(arguments[group_]));
      if (root_ >= 0) facts.root = global_rank(ring, facts.communicator, arguments[root_].toInt());
      const bool of_steps = ring.is_of_steps(facts.communicator);
      // On CUDA the thread that enters waits for nothing: what its device waits for is not known.
      if (!cuda_ && of_steps) ring.begin_stretch(now, blocks(arguments));
      const uint8_t flags = (of_steps ? Operation::of_steps : 0) | (on_device ? Operation::on_device : 0) | direction_;
      return enter(ring, facts, now, flags);
    } catch (...) {
      return Operation();
    }
  }

  static Work* work_of(const IValue& result) { return result.isNone() ? nullptr : look_at<Work>(result); }

  // Sees to it that the end of the work is noted; may put a wrapped work in its place.
  void follow(const Operation& operation, IValue& result) {
    Work* work = work_of(result);
    if (work == nullptr) return operation.leave_and_go_outside(false);
    if (op_.kind == Kind::collective && has_future_.load(relaxed)) {
      try {
        work->getFuture()->addCallback(
            [operation](c10::ivalue::Future& future) { operation.leave_and_go_outside(future.hasError()); },
            /*uses_future=*/false);  // its value is not looked at: no device or stream has to be waited for
        return;
      } catch (const std::exception&) {
        has_future_.store(false, relaxed);
      }
    }
    result = IValue(WorkPtr(c10::make_intrusive<WrappedWork>(WorkPtr::reclaim_copy(work), operation)));
    operation.go_outside();  // until somebody waits for it
  }

  // ---- on a device

  void call_on_device(
      Ring& ring, const IValue* arguments, const OperatorHandle& handle, c10::DispatchKeySet keys, Stack* stack) {
    const bool waits = blocks(arguments);
    WatchedPtr watched = queue_up(arguments);
    const Operation operation = note_entry(ring, arguments, watched != nullptr);
    if (watched && operation.id != 0) watched->operation = operation, watched = watch(std::move(watched));
    try {
      kernel_.callBoxed(handle, keys, stack);
    } catch (...) {
      leave_on_device(watched.get(), operation, true);
      throw;
    }
    if (operation.id == 0) return;
    if (!watched || op_.kind == Kind::call) return leave_on_device(watched.get(), operation, false);
    try {
      follow_on_device(watched, stack->back(), waits);
    } catch (...) {  // no memory, or an error of the device: its end cannot be seen
      leave_on_device(watched.get(), operation, false);
    }
  }

  // A point in the queue of the device, before the call; none: there is no such queue, or a graph captures it.
  WatchedPtr queue_up(const IValue* arguments) const noexcept {
    try {
      const Queue queue = current_queue(payload_ < 0 ? std::nullopt : device_of(arguments[payload_]));
      return is_capturing(queue) ? nullptr : std::make_shared<Watched>(queue);
    } catch (...) {
      return nullptr;
    }
  }

  // From before the call on, which may wait for the device itself, as a barrier does. Null: there is no thread for it.
  static WatchedPtr watch(WatchedPtr watched) noexcept {
    try {
      watcher.add(watched);
      return watched;
    } catch (...) {
      watched->operation.reach();
      return nullptr;
    }
  }

  static void leave_on_device(Watched* watched, const Operation& operation, bool failed) {
    if (watched == nullptr) return operation.leave_and_go_outside(failed);
    watched->stage.store(failed ? Watched::failed : Watched::left, release);
  }

  // A call that is not asynchronous gives no work (torch 2.8 and later): it runs in the queue itself. Nor does one within
  // a group of calls, which is queued when the group is closed.
  void follow_on_device(const WatchedPtr& watched, IValue& result, bool waits) {
    if (coalescing.open) return coalescing.watched.push_back(watched);
    Work* found = work_of(result);
    const WorkPtr work = found == nullptr ? WorkPtr() : WorkPtr::reclaim_copy(found);
    const bool is_direct = op_.kind != Kind::collective;
    if (!work && is_direct) return leave_on_device(watched.get(), watched->operation, false);  // a group unknown to us
    if (!work || (waits && !is_direct && simulated.on.load(relaxed))) return watched->end_in(watched->queue);
    result = IValue(WorkPtr(c10::make_intrusive<DeviceWork>(work, std::vector<WatchedPtr>{watched})));
    watched->go_on(work);
  }

  Kernel kernel_;
  Op op_;
  bool cuda_;
  size_t arguments_;
  uint8_t direction_ = 0;
  int group_ = -1, payload_ = -1, root_ = -1, tag_ = -1, async_ = -1;
  std::atomic<bool> has_future_{true};  // of what this operator's backend gives; assumed until it raises
};

std::vector<c10::RegistrationHandleRAII>* registrations = nullptr;

// Closes a group of calls: its work stands for all of them.
WorkPtr end_coalescing(const WorkPtr& work) {
  coalescing.open = false;
  const std::vector<WatchedPtr> watched = std::exchange(coalescing.watched, {});
  if (watched.empty()) return work;
  WorkPtr followed = c10::make_intrusive<DeviceWork>(work, watched);
  for (const WatchedPtr& one : watched) one->go_on(work);
  return followed;
}

struct Silent : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

}  // namespace

// ---- what worker.py calls, through ctypes. None of these throws or needs the GIL.

extern "C" {

// Wraps the kernels; starts no thread, opens no file: a zygote may do it before it forks. Returns how many.
int ftrain_recorder_install() {
  if (registrations != nullptr) return int(registrations->size());
  Silent silent;  // of "overriding a previously registered kernel"
  c10::WarningUtils::WarningHandlerGuard guard(&silent);
  auto made = std::make_unique<std::vector<c10::RegistrationHandleRAII>>();
  auto& dispatcher = c10::Dispatcher::singleton();
  try {
    for (const Op& op : OPS) {
      const auto handle = dispatcher.findSchema({std::string("c10d::") + op.name, ""});
      if (!handle) continue;
      for (const DispatchKey key : KEYS) {
        if (!handle->hasKernelForDispatchKey(key)) continue;
        const bool cuda = key == DispatchKey::CUDA || key == DispatchKey::SparseCUDA;
        auto wrapper =
            std::make_unique<Wrapper>(handle->getComputedKernelForDispatchKey(key), op, handle->schema(), cuda);
        made->push_back(dispatcher.registerImpl(handle->operator_name(), key,
            c10::KernelFunction::makeFromBoxedFunctor(std::move(wrapper)), std::nullopt, nullptr, "ftrain"));
      }
    }
  } catch (const std::exception&) {
    return 0;
  }
  registrations = made.release();
  return int(registrations->size());
}

// Puts the bare kernels back. Only while no operation is under way.
void ftrain_recorder_uninstall() {
  delete registrations;
  registrations = nullptr;
}

// Records into the ring that ring.py has made, from now on. Returns 0, or an error number. Where there is one already,
// what is under way is lost: only while no group of it is in use.
int ftrain_recorder_open(int fd) {
  struct stat status;
  if (fstat(fd, &status) != 0) return errno;
  void* at = mmap(nullptr, size_t(status.st_size), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (at == MAP_FAILED) return errno;
  const Header& header = *static_cast<Header*>(at);
  if (header.communicators_max != COMMUNICATORS_MAX || header.channels_max != CHANNELS_MAX ||
      header.marks_max != MARKS_MAX || header.recent != RECENT || header.records_max != RECORDS_MAX)
    return EINVAL;
  static uint32_t rings = 0;
  static const int handled = pthread_atfork(nullptr, nullptr, [] { the_ring.store(nullptr); });
  if (handled != 0) return handled;
  names.forget();
  the_step.store(-1);
  if (Ring* last = the_ring.exchange(new Ring(static_cast<char*>(at), ++rings))) last->leave_empty();
  return 0;
}

// The end of a step, called by one thread.
void ftrain_recorder_mark(int64_t step) {
  Ring* ring = the_ring.load(acquire);
  if (ring == nullptr) return;
  Header& header = *ring->header;
  const uint64_t number = header.marks.load(relaxed) + 1, now = now_ns();
  watcher.let_go();
  ring->begin_stretch(now, true);
  ring->marker.store(this_thread(), relaxed);
  Mark& mark = ring->marks[number % MARKS_MAX];
  mark.number.store(0, relaxed);
  std::atomic_thread_fence(release);
  mark.step = step;
  mark.at_ns = now;
  mark.waited_ns = header.waited_ns.load(relaxed);
  mark.processor_ns = processor_ns();
  mark.head = header.head.load(relaxed);
  mark.number.store(number, release);
  header.marks.store(number, release);
  the_step.store(step, relaxed);
}

// The process ends in good order: nothing may be asked of a work any more.
void ftrain_recorder_close() {
  watcher.stop();
  if (Ring* ring = the_ring.load(acquire)) ring->header->closed.store(1);
}

// This thread's calls until the end belong together, and give no works of their own.
void ftrain_recorder_begin_coalescing() {
  for (const WatchedPtr& one : coalescing.watched) {  // of a group that an exception has ended
    one->stage.store(Watched::failed, release);
  }
  coalescing.watched.clear();
  coalescing.open = true;
}

// As above, without a work: they run in the queue in which they were called.
void ftrain_recorder_end_coalescing() {
  coalescing.open = false;
  for (const WatchedPtr& one : std::exchange(coalescing.watched, {})) {
    try {
      one->end_in(one->queue);
    } catch (const std::exception&) {
      one->stage.store(Watched::left, release);
    }
  }
}

// For tests: treat all operations as if a device did them, one after the other.
void ftrain_recorder_simulate_device(int on) { simulated.on.store(on != 0); }

// From now on it does nothing; or does again.
void ftrain_recorder_freeze_device(int on) { simulated.freeze(on != 0); }
}

TORCH_LIBRARY_FRAGMENT(ftrain, library) { library.def("end_coalescing", end_coalescing); }
