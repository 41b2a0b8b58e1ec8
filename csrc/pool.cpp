#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mlic {
namespace {

// Sets the default environment, and restores the former one at the end.
class FloatEnvironment {
 public:
  FloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&saved_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  std::fenv_t saved_;
};

struct Counters {
  std::atomic<bool> on{false};
  std::atomic<int64_t> calls{0}, results{0}, layouts{0};
};
Counters g_counters;

int64_t nanoseconds(clockid_t clock) {
  std::timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * int64_t{1000000000} + now.tv_nsec;
}

// Adds the time of its life to a counter, unless that is null.
class Stopwatch {
 public:
  Stopwatch(clockid_t clock, std::atomic<int64_t>* counter) : clock_(clock), counter_(counter) {
    if (counter_ != nullptr) begin_ = nanoseconds(clock_);
  }
  ~Stopwatch() {
    if (counter_ != nullptr) counter_->fetch_add(nanoseconds(clock_) - begin_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  const clockid_t clock_;
  std::atomic<int64_t>* const counter_;
  int64_t begin_ = 0;
};

struct Job {
  Job(ptrdiff_t tasks, int helpers, void (*f)(void*, ptrdiff_t), void* context,
      std::atomic<int64_t>* counter)
      : tasks(tasks), helpers_wanted(helpers), f(f), context(context), counter(counter) {}

  const ptrdiff_t tasks;
  int helpers_wanted;  // guarded by the pool
  void (*const f)(void*, ptrdiff_t);
  void* const context;
  std::atomic<int64_t>* const counter;  // of the time that it takes on processors; or null
  std::atomic<ptrdiff_t> next{0};
  std::atomic<int> helpers{0};  // raised under the pool's lock alone
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // of the first task that threw

  bool exhausted() const { return next.load(std::memory_order_relaxed) >= tasks; }

  void work() {
    const Stopwatch stopwatch(CLOCK_THREAD_CPUTIME_ID, counter);
    const FloatEnvironment environment;
    for (;;) {
      const ptrdiff_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      try {
        f(context, task);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  }

  // Once nobody works on it any more.
  void rethrow() const {
    if (error) std::rethrow_exception(error);
  }
};

// A kernel call lasts tens of microseconds, about as long as it takes to wake a thread: so workers
// look for the next job for a while before they sleep.
constexpr auto kSpin = std::chrono::microseconds(1000);

class Pool {
 public:
  void run(Job& job) {
    {
      const std::lock_guard lock(mutex_);
      grow(job.helpers_wanted);
      jobs_.push_back(&job);
      posted_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job.work();
    {
      const std::lock_guard lock(mutex_);
      for (auto it = jobs_.begin(); it != jobs_.end(); ++it) {
        if (*it == &job) {
          jobs_.erase(it);
          break;
        }
      }
    }
    // No worker can join any more; those inside are at their last task.
    for (int spins = 0; job.helpers.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins > 1000) std::this_thread::yield();
    }
  }

 private:
  void grow(int wanted) {
    while (workers_ < wanted) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // fewer threads give the same result
      }
      ++workers_;
    }
  }

  // Under the lock: a job that still wants help, or null.
  Job* join() {
    for (Job* job : jobs_) {
      if (job->helpers_wanted > 0 && !job->exhausted()) {
        --job->helpers_wanted;
        job->helpers.fetch_add(1, std::memory_order_relaxed);
        return job;
      }
    }
    return nullptr;
  }

  [[noreturn]] void serve() {
    for (;;) {
      Job* job = nullptr;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return (job = join()) != nullptr; });
      }
      while (job != nullptr) {
        job->work();
        job->helpers.fetch_sub(1, std::memory_order_release);
        job = spin();
      }
    }
  }

  Job* spin() {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    unsigned seen = posted_.load(std::memory_order_acquire) - 1;  // look at least once
    do {
      const unsigned posted = posted_.load(std::memory_order_acquire);
      if (posted != seen) {
        seen = posted;
        const std::lock_guard lock(mutex_);
        if (Job* job = join()) return job;
      }
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < end);
    return nullptr;
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Job*> jobs_;
  std::atomic<unsigned> posted_{0};
  int workers_ = 0;
};

// Never destroyed: workers use it until the process ends. A forked child has no workers and perhaps
// a locked mutex, so it begins a new one.
std::atomic<Pool*> g_pool{nullptr};

Pool& pool() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr, std::memory_order_relaxed); });
  static_cast<void>(registered);
  Pool* current = g_pool.load(std::memory_order_acquire);
  if (current == nullptr) {
    auto* made = new Pool;
    if (g_pool.compare_exchange_strong(current, made)) return *made;
    delete made;
  }
  return *current;
}

void run(ptrdiff_t tasks, int threads, void (*f)(void*, ptrdiff_t), void* context,
         std::atomic<int64_t>& counter) {
  const ptrdiff_t helpers = (threads < tasks ? threads : tasks) - 1;
  const bool measures = g_counters.on.load(std::memory_order_relaxed);
  // A single thread waits for no other: its time is that on the processor, however busy the machine
  // is.
  const Stopwatch stopwatch(threads > 1 ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID,
                            measures ? &g_counters.calls : nullptr);
  Job job(tasks, helpers < 0 ? 0 : static_cast<int>(helpers), f, context,
          measures ? &counter : nullptr);
  if (helpers <= 0) {
    job.work();
  } else {
    pool().run(job);
  }
  job.rethrow();
}

}  // namespace

void parallel_for(ptrdiff_t tasks, int threads, void (*f)(void*, ptrdiff_t), void* context) {
  run(tasks, threads, f, context, g_counters.results);
}

void rearrange(ptrdiff_t tasks, int threads, void (*f)(void*, ptrdiff_t), void* context) {
  run(tasks, threads, f, context, g_counters.layouts);
}

void measure(bool on) {
  g_counters.on = on;
  for (auto* counter : {&g_counters.calls, &g_counters.results, &g_counters.layouts}) *counter = 0;
}

Times measured() { return {g_counters.calls, g_counters.results, g_counters.layouts}; }

}  // namespace mlic
