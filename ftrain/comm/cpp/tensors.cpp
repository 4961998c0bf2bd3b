// What the copy plan asks of thousands of tensors at each commit, without a call from Python for each (tensors.py).
#include <c10/core/TensorImpl.h>

#include <cstdint>

extern "C" {

// Of each tensor, given by its `_cdata`, where its bytes lie and how often torch counted a change in place. Whoever
// calls keeps the tensors alive, and the GIL. Returns 0, or 1 if one of them has no memory or no count.
int ftrain_tensors_look(const uint64_t* tensors, int64_t count, uint64_t* addresses, int64_t* versions) noexcept {
  try {
    for (int64_t i = 0; i < count; i++) {
      auto* tensor = reinterpret_cast<c10::TensorImpl*>(tensors[i]);
      addresses[i] = reinterpret_cast<uint64_t>(tensor->data());
      versions[i] = static_cast<int64_t>(tensor->version_counter().current_version());
    }
    return 0;
  } catch (...) {
    return 1;
  }
}

}  // extern "C"
