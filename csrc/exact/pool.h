// Worker threads of the process. They start when first needed and live until it ends.
#pragma once

#include <cstddef>
#include <type_traits>

namespace mlic::exact {

// Calls f(context, task) for every task in 0 .. tasks, on the calling thread and on at most
// threads - 1 workers. Where tasks throw, the first exception comes back once all are done. Several
// threads may call at once; a task must not.
// While it runs a task has the default floating point environment: rounding to nearest, no flush
// to zero, whatever the calling thread has set.
void parallel_for(ptrdiff_t tasks, int threads, void (*f)(void*, ptrdiff_t), void* context);

template <class F>
void parallel_for(ptrdiff_t tasks, int threads, F&& f) {
  parallel_for(
      tasks, threads,
      [](void* context, ptrdiff_t task) {
        (*static_cast<std::remove_reference_t<F>*>(context))(task);
      },
      &f);
}

}  // namespace mlic::exact
