// The two ways to see the end of a work that has no usable future.

#pragma once

#include "device.hpp"
#include "operation.hpp"

#include <torch/csrc/distributed/c10d/Work.hpp>

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace ftrain {

using c10d::Work;
using WorkPtr = c10::intrusive_ptr<Work>;

// Stands for another work, and is told when somebody begins to wait for it, and when that is over.
class StandIn : public Work {
 public:
  explicit StandIn(WorkPtr work) : Work(-1, work->retrieveOpType()), work_(std::move(work)) {}

  bool isCompleted() override { return work_->isCompleted(); }
  bool isSuccess() const override { return work_->isSuccess(); }
  std::exception_ptr exception() const override { return work_->exception(); }
  int sourceRank() const override { return work_->sourceRank(); }
  std::vector<at::Tensor> result() override { return work_->result(); }
  bool wait(std::chrono::milliseconds timeout) override { return work_->wait(timeout); }
  void synchronize() override { work_->synchronize(); }
  void blockCurrentStream() override { work_->blockCurrentStream(); }
  void abort() override { work_->abort(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return work_->getFuture(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override { return work_->getFutureResult(); }
  float getDuration() const override { return work_->getDuration(); }
  uint64_t getSequencenumber() const override { return work_->getSequencenumber(); }

 protected:
  WorkPtr work_;
};

// A work without a future: its exit is that of wait(), or when it is found completed, or dropped.
class WrappedWork final : public StandIn {
 public:
  WrappedWork(WorkPtr work, Operation operation) : StandIn(std::move(work)), operation_(operation) {}
  ~WrappedWork() override { leave(false); }

  bool isCompleted() override {
    const bool completed = work_->isCompleted();
    if (completed) leave(work_->exception() != nullptr);
    return completed;
  }
  bool wait(std::chrono::milliseconds timeout) override {
    operation_.note_wait();
    struct Outside {
      const Operation& operation;
      ~Outside() { operation.go_outside(); }
    } outside{operation_};
    try {
      const bool result = work_->wait(timeout);
      leave(false);
      return result;
    } catch (...) {
      leave(true);
      throw;
    }
  }

 private:
  void leave(bool failed) {
    if (!left_.exchange(true)) operation_.leave(failed);
  }

  Operation operation_;
  std::atomic<bool> left_{false};
};

// An operation on a device, from its call until the device is done with it: asked by one thread.
struct Watched {
  enum Stage {
    called,    // the call has not returned, or its group has not been closed
    returned,  // `work` is set: it tells the end
    waited,    // `ended` is set: so does that
    left,      // nothing tells its end: it is that of its beginning
    failed,    // the call has raised
  };

  explicit Watched(Queue its_queue) : queue(std::move(its_queue)) { before.set(queue); }

  const Queue queue;
  Point before, ended;
  Operation operation;
  WorkPtr work;  // the watcher's, once it is set
  std::atomic<Stage> stage{called};
  bool reached = false;

  void go_on(WorkPtr its_work) {
    work = std::move(its_work);
    stage.store(returned, release);
  }

  // What is put into this queue from now on comes after it.
  void end_in(const Queue& its_queue) {
    if (is_capturing(its_queue)) return;
    ended.set(its_queue);
    stage.store(waited, release);
  }
};
using WatchedPtr = std::shared_ptr<Watched>;

// On a device wait() only queues: from there on the device's own queue tells the end, and the work need not be kept. To
// keep it would keep its tensors, whose memory torch gives to others as soon as it is waited for and dropped.
class DeviceWork final : public StandIn {
 public:
  DeviceWork(WorkPtr work, std::vector<WatchedPtr> watched) : StandIn(std::move(work)), watched_(std::move(watched)) {}

  bool wait(std::chrono::milliseconds timeout) override {
    const bool result = work_->wait(timeout);
    end_here();
    return result;
  }
  void synchronize() override {
    work_->synchronize();
    end_here();
  }
  void blockCurrentStream() override {
    work_->blockCurrentStream();
    end_here();
  }

 private:
  void end_here() noexcept {
    if (waited_.exchange(true)) return;
    try {
      for (const WatchedPtr& one : watched_)
        one->end_in(current_queue(one->queue ? std::optional(one->queue->device()) : std::nullopt));
    } catch (...) {  // the work goes on being asked
    }
  }

  std::vector<WatchedPtr> watched_;
  std::atomic<bool> waited_{false};
};

// Asks devices how far they are, once in a millisecond, while anything is under way there.
class Watcher {
 public:
  void add(WatchedPtr watched) {
    std::vector<WorkPtr> done;
    std::lock_guard<std::mutex> lock(mutex_);
    done.swap(done_);  // let go after the lock
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    arrived_.push_back(std::move(watched));
    if (idle_) changed_.notify_one();
  }

  // A work's tensors may only be let go by the threads that use them, as torch does: it may take the GIL.
  void let_go() {
    std::vector<WorkPtr> done;
    std::lock_guard<std::mutex> lock(mutex_);
    done.swap(done_);
  }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!thread_.joinable()) return;
      stopping_ = true;
      changed_.notify_one();
    }
    thread_.join();
  }

 private:
  void run() {
    pthread_setname_np(pthread_self(), "ftrain-watch");
    let_others_capture();
    auto& watched = *new std::vector<WatchedPtr>();  // what is left at the end is not let go by this thread
    while (true) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        idle_ = watched.empty();
        if (idle_)
          changed_.wait(lock, [this] { return stopping_ || !arrived_.empty(); });
        else
          changed_.wait_for(lock, std::chrono::milliseconds(1), [this] { return stopping_; });
        if (stopping_) return;
        idle_ = false;
        for (WatchedPtr& one : arrived_) watched.push_back(std::move(one));
        arrived_.clear();
      }
      behind_.clear();
      const auto left = [this](const WatchedPtr& one) { return has_left(*one); };
      watched.erase(std::remove_if(watched.begin(), watched.end(), left), watched.end());
    }
  }

  bool has_left(Watched& one) {
    const Watched::Stage stage = one.stage.load(acquire);
    bool failed = false;
    try {
      if (!one.reached) {
        if (stage != Watched::failed && !has_reached(one)) return false;
        one.reached = true;
        one.operation.reach();
      }
      if (stage == Watched::called) return false;
      const bool completed = one.work ? one.work->isCompleted() : stage >= Watched::left;
      failed = stage == Watched::failed || (one.work && one.work->exception() != nullptr);
      if (stage != Watched::returned || completed) let_go_later(one.work);
      if (!completed && (stage == Watched::returned || !one.ended.is_passed())) return false;
    } catch (...) {
      failed = true;
      if (!one.reached) one.operation.reach();
      let_go_later(one.work);
    }
    one.operation.leave_and_go_outside(failed);
    return true;
  }

  // What comes later in a queue is not asked for where something earlier has not been reached.
  bool has_reached(const Watched& one) {
    if (std::find(behind_.begin(), behind_.end(), one.queue) != behind_.end()) return false;
    if (one.before.is_passed()) return true;
    behind_.push_back(one.queue);
    return false;
  }

  void let_go_later(WorkPtr& work) {
    if (!work) return;
    std::lock_guard<std::mutex> lock(mutex_);
    done_.push_back(std::move(work));
  }

  // A question to CUDA from this thread would end another thread's capture of a graph, unless it says that it is its own.
  static void let_others_capture() {
    using Exchange = int (*)(int*);
    for (const char* library : {"libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"}) {
      void* cuda = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
      if (cuda == nullptr) continue;
      int mode = 1;  // cudaStreamCaptureModeThreadLocal
      if (auto exchange = reinterpret_cast<Exchange>(dlsym(cuda, "cudaThreadExchangeStreamCaptureMode"))) exchange(&mode);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<WatchedPtr> arrived_;
  std::vector<WorkPtr> done_;
  std::vector<Queue> behind_;  // of this round
  bool idle_ = false, stopping_ = false;
  std::thread thread_;
};
inline Watcher& watcher = *new Watcher();

}  // namespace ftrain
