// The recorder: every operation of every process group of this process, written to the ring (ring.py has its layout).
//
// torch sends each collective, send and receive through an operator c10d::NAME of its dispatcher, whatever the backend
// and whoever asks for it: the user, DDP's reducer, FSDP, DTensor, functional collectives. install() puts a wrapper
// round each of these kernels: it notes the entry, calls the kernel, and sees to it that the exit is noted.
//
// How the exit is seen:
//   a future     its callback notes it (gloo's collectives);
//   none         the work is wrapped, and the end of wait() is taken (gloo's send, receive, reduce_scatter);
//   on CUDA      the future completes when the kernel is enqueued, so one thread asks the work once in a millisecond.
//
// Nothing here is waited for: all tables are fixed, counters are atomic, and no lock is held while torch is called.
// Nothing throws into the caller. In a process forked from this one nothing is recorded. Build: library.py.

#include "works.hpp"

#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>

namespace {

using namespace ftrain;
using c10::DispatchKey;
using c10::IValue;
using c10::OperatorHandle;

std::atomic<bool> watch_all{false};  // for tests: treat every work as one on CUDA

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

// As toCustomClass(), without what that asks about types: the operator's schema says which it is, and each question is a
// walk through memory that nobody has touched since the last operation.
template <typename T>
c10::intrusive_ptr<T> held_by(const IValue& value) {
  return c10::static_intrusive_pointer_cast<T>(value.toObjectRef().getSlot(0).toCapsule());
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
  }

  void operator()(const OperatorHandle& handle, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    Ring* ring = the_ring.load(acquire);
    if (ring == nullptr) return kernel_.callBoxed(handle, keys, stack);
    const Operation operation = note_entry(*ring, stack->data() + stack->size() - arguments_);
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
    } catch (...) {  // no thread, no memory: its end cannot be seen
      operation.leave_and_go_outside(false);
    }
  }

 private:
  Operation note_entry(Ring& ring, const IValue* arguments) const noexcept {
    try {
      const uint64_t now = now_ns();
      Facts facts;
      facts.op = op_.number;
      if (payload_ >= 0) add_payload(arguments[payload_], facts);
      if (tag_ >= 0) facts.tag = int32_t(arguments[tag_].toInt());
      facts.communicator = communicator_of(ring, held_by<ProcessGroup>(arguments[group_]));
      if (root_ >= 0) facts.root = global_rank(ring, facts.communicator, arguments[root_].toInt());
      const bool of_steps = ring.is_of_steps(facts.communicator);
      // On CUDA the thread that enters waits for nothing: what its device waits for is not known.
      if (!cuda_ && of_steps)
        ring.begin_stretch(now, op_.kind != Kind::collective || (async_ >= 0 && !arguments[async_].toBool()));
      return enter(ring, facts, now, op_.kind == Kind::send, op_.kind == Kind::receive, of_steps);
    } catch (...) {
      return Operation();
    }
  }

  // Sees to it that the end of the work is noted; may put a wrapped work in its place.
  void follow(const Operation& operation, IValue& result) {
    const WorkPtr work = result.isNone() ? WorkPtr() : held_by<Work>(result);
    if (!work || (cuda_ && is_capturing())) return operation.leave_and_go_outside(false);
    if (cuda_ || watch_all.load(relaxed)) return watcher.add(work, operation);
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
    result = IValue(WorkPtr(c10::make_intrusive<WrappedWork>(work, operation)));
    operation.go_outside();  // until somebody waits for it
  }

  Kernel kernel_;
  Op op_;
  bool cuda_;
  size_t arguments_;
  int group_ = -1, payload_ = -1, root_ = -1, tag_ = -1, async_ = -1;
  std::atomic<bool> has_future_{true};  // of what this operator's backend gives; assumed until it raises
};

std::vector<c10::RegistrationHandleRAII>* registrations = nullptr;

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
  static const int handled = pthread_atfork(nullptr, nullptr, [] { the_ring.store(nullptr); });
  if (handled != 0) return handled;
  names.forget();
  the_step.store(-1);
  if (Ring* last = the_ring.exchange(new Ring(static_cast<char*>(at)))) last->leave_empty();
  return 0;
}

// The end of a step, called by one thread.
void ftrain_recorder_mark(int64_t step) {
  Ring* ring = the_ring.load(acquire);
  if (ring == nullptr) return;
  Header& header = *ring->header;
  const uint64_t number = header.marks.load(relaxed) + 1, now = now_ns();
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

void ftrain_recorder_watch_all(int on) { watch_all.store(on != 0); }
}
