// The two ways to see the end of a work that has no usable future.

#pragma once

#include "operation.hpp"

#include <c10/core/impl/VirtualGuardImpl.h>
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
// A work without a future, wrapped: its exit is that of wait(), or when it is found completed, or dropped.
class WrappedWork final : public Work {
 public:
  WrappedWork(WorkPtr work, Operation operation)
      : Work(-1, work->retrieveOpType()), work_(std::move(work)), operation_(operation) {}
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
  bool isSuccess() const override { return work_->isSuccess(); }
  std::exception_ptr exception() const override { return work_->exception(); }
  int sourceRank() const override { return work_->sourceRank(); }
  std::vector<at::Tensor> result() override { return work_->result(); }
  void synchronize() override { work_->synchronize(); }
  void blockCurrentStream() override { work_->blockCurrentStream(); }
  void abort() override { work_->abort(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return work_->getFuture(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override { return work_->getFutureResult(); }
  float getDuration() const override { return work_->getDuration(); }
  uint64_t getSequencenumber() const override { return work_->getSequencenumber(); }

 private:
  void leave(bool failed) {
    if (!left_.exchange(true)) operation_.leave(failed);
  }

  WorkPtr work_;
  Operation operation_;
  std::atomic<bool> left_{false};
};

// Works that nothing tells the end of: one thread asks them.
class Watcher {
 public:
  void add(WorkPtr work, Operation operation) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    arrived_.push_back({std::move(work), operation});
    if (idle_) changed_.notify_one();
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
  struct Watched {
    WorkPtr work;
    Operation operation;
  };

  void run() {
    pthread_setname_np(pthread_self(), "ftrain-watch");
    let_others_capture();
    std::vector<Watched> watched;
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
        for (Watched& one : arrived_) watched.push_back(std::move(one));
        arrived_.clear();
      }
      watched.erase(std::remove_if(watched.begin(), watched.end(), has_left), watched.end());
    }
  }

  static bool has_left(const Watched& watched) {
    bool failed = false;
    try {
      if (!watched.work->isCompleted()) return false;
      failed = watched.work->exception() != nullptr;
    } catch (...) {
      failed = true;
    }
    watched.operation.leave_and_go_outside(failed);
    return true;
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
  std::vector<Watched> arrived_;
  bool idle_ = false, stopping_ = false;
  std::thread thread_;
};
inline Watcher& watcher = *new Watcher();

// A work that belongs to a graph under capture is no operation yet, and must not be asked.
inline bool is_capturing() {
  const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
  return cuda.isStreamCapturing(cuda.getStream(cuda.getDevice()));
}

}  // namespace ftrain
