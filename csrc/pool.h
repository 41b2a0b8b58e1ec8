// Worker threads of the process. They start when first needed and live until it ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace mlic {

// Calls f(context, task) for every task in 0 .. tasks, on the calling thread and on at most
// threads - 1 workers. Where tasks throw, the first exception comes back once all are done. Several
// threads may call at once; a task must not.
// While it runs a task has the default floating point environment: rounding to nearest, no flush
// to zero, whatever the calling thread has set.
void parallel_for(ptrdiff_t tasks, int threads, void (*f)(void*, ptrdiff_t), void* context);

// The same, for tasks that only move data: they are measured apart.
void rearrange(ptrdiff_t tasks, int threads, void (*f)(void*, ptrdiff_t), void* context);

template <class F>
void call(void* f, ptrdiff_t task) {
  (*static_cast<F*>(f))(task);
}

template <class F>
void parallel_for(ptrdiff_t tasks, int threads, F&& f) {
  parallel_for(tasks, threads, &call<std::remove_reference_t<F>>, &f);
}

template <class F>
void rearrange(ptrdiff_t tasks, int threads, F&& f) {
  rearrange(tasks, threads, &call<std::remove_reference_t<F>>, &f);
}

// Of all calls of both while they are measured, in nanoseconds; not measured at first.
struct Times {
  int64_t calls;    // from the start of each call to its end
  int64_t results;  // of all threads, on the processor, in tasks of parallel_for
  int64_t layouts;  // likewise, of rearrange
};
void measure(bool on);  // and begin at zero
Times measured();

}  // namespace mlic
