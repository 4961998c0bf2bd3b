// What the copy plan asks of thousands of tensors and dictionaries at each commit, without a call from Python for each
// (ftrain/looks.py). Whoever calls keeps all of them alive, and the GIL.
#include <ATen/core/TensorBody.h>
#include <c10/core/TensorImpl.h>

#include <cstdint>

// Of Python's stable ABI: no header, and no version, is needed for these.
extern "C" void* PyDict_GetItem(void* dictionary, void* key);
extern "C" int PyDict_Next(void* dictionary, intptr_t* position, void** key, void** value);
extern "C" intptr_t PyDict_Size(void* dictionary);

// What is asked lies all over memory, and training has emptied the caches: most of the time goes into waiting for it, so
// it is sent for some places ahead.
static const int64_t AHEAD = 24;

static void fetch(const void* place, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(place) + at);
}

static c10::TensorImpl* tensor_of(uint64_t handle) { return reinterpret_cast<c10::TensorImpl*>(handle); }

extern "C" {

// Of each tensor, given by its `_cdata`, where its bytes lie and how often torch counted a change in place. Returns 0,
// or 1 if one of them has no memory or no count.
int ftrain_tensors_look(const uint64_t* tensors, int64_t count, uint64_t* addresses, int64_t* versions) noexcept {
  try {
    for (int64_t i = 0; i < count; i++) {
      if (i + AHEAD < count) fetch(tensor_of(tensors[i + AHEAD]), sizeof(c10::TensorImpl));
      if (i + AHEAD / 2 < count) fetch(tensor_of(tensors[i + AHEAD / 2])->unsafe_storage().unsafeGetStorageImpl(), 64);
      addresses[i] = reinterpret_cast<uint64_t>(tensor_of(tensors[i])->data());
      versions[i] = static_cast<int64_t>(tensor_of(tensors[i])->version_counter().current_version());
    }
    return 0;
  } catch (...) {
    return 1;
  }
}

// How many of these tensors have a gradient; -1: that cannot be told.
int64_t ftrain_tensors_with_gradient(const uint64_t* tensors, int64_t count) noexcept {
  try {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
      const c10::TensorImpl* tensor = tensor_of(tensors[i]);
      found += tensor->grad().defined();
    }
    return found;
  } catch (...) {
    return -1;
  }
}

// Whether each dictionary holds the very keys and values of `items`, in their order: two for each of its `sizes`.
int ftrain_dictionaries_same(void* const* dictionaries, const int64_t* sizes, int64_t count, void* const* items) noexcept {
  for (int64_t i = 0; i < count; i++) {
    if (i + AHEAD < count) fetch(dictionaries[i + AHEAD], 64);
    if (PyDict_Size(dictionaries[i]) != sizes[i]) return 0;
    void *key, *value;
    for (intptr_t position = 0; PyDict_Next(dictionaries[i], &position, &key, &value); items += 2)
      if (key != items[0] || value != items[1]) return 0;
  }
  return 1;
}

// Whether each dictionary has the very values of `values` under `keys`: one for each key, dictionary by dictionary.
int ftrain_dictionaries_have(
    void* const* dictionaries, int64_t count, void* const* keys, int64_t key_count, void* const* values) noexcept {
  for (int64_t i = 0; i < count; i++) {
    if (i + AHEAD < count) fetch(dictionaries[i + AHEAD], 64);
    for (int64_t k = 0; k < key_count; k++)
      if (PyDict_GetItem(dictionaries[i], keys[k]) != *values++) return 0;
  }
  return 1;
}

}  // extern "C"
