// What the copy plan asks of thousands of tensors and containers at each commit, without a call from Python for each
// (ftrain/looks.py). Whoever calls keeps all of them alive, and the GIL.
#include <ATen/core/TensorBody.h>
#include <c10/core/ScalarTypeToTypeMeta.h>
#include <c10/core/TensorImpl.h>

#include <cstdint>

// Of Python's stable ABI: no header, and no version, is needed for these.
extern "C" void* PyDict_GetItem(void* dictionary, void* key);
extern "C" int PyDict_Next(void* dictionary, intptr_t* position, void** key, void** value);
extern "C" intptr_t PyDict_Size(void* dictionary);
extern "C" void* PyList_GetItem(void* list, intptr_t index);
extern "C" intptr_t PyList_Size(void* list);

// What is asked lies all over memory, and training has emptied the caches: most of the time goes into waiting for it, so
// it is sent for some places ahead.
static const int64_t AHEAD = 24;

static void fetch(const void* place, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(place) + at);
}

// A tensor's Python object says at this offset where the tensor is; torch.utils.swap_tensors changes that.
static const c10::TensorImpl* tensor_of(const char* object, int64_t offset) {
  return *reinterpret_cast<const c10::TensorImpl* const*>(object + offset);
}

// How a tensor's bytes are read, as one number: equal bytes can be another matrix (t_(), or `.data` given a view).
static uint64_t form_of(const c10::TensorImpl* tensor) {
  uint64_t form = static_cast<uint64_t>(c10::typeMetaToScalarType(tensor->dtype()));
  auto add = [&form](uint64_t number) { form = (form ^ number) * 0x9E3779B97F4A7C15u + (form >> 29); };
  add(2 * tensor->is_conj() + tensor->is_neg());
  for (int64_t size : tensor->sizes()) add(static_cast<uint64_t>(size));
  for (int64_t stride : tensor->strides()) add(static_cast<uint64_t>(stride));
  return form;
}

// Kinds of containers, as looks.py has them.
enum Kind : uint8_t { LIST, DICTIONARY, MEMBERS };

static bool has_items(Kind kind, void* container, int64_t size, void* const* items) {
  if (kind == LIST) {
    if (PyList_Size(container) != size) return false;
    for (int64_t i = 0; i < size; i++)
      if (PyList_GetItem(container, i) != items[i]) return false;
  } else if (kind == DICTIONARY) {
    if (PyDict_Size(container) != size) return false;
    void *key, *value;
    for (intptr_t position = 0; PyDict_Next(container, &position, &key, &value); items += 2)
      if (key != items[0] || value != items[1]) return false;
  } else {
    for (int64_t i = 0; i < size; i++, items += 2)
      if (PyDict_GetItem(container, items[0]) != items[1]) return false;
  }
  return true;
}

extern "C" {

// Whether each object has its tensor at this offset: `handles` are what `_cdata` says.
int ftrain_tensors_known(
    const char* const* objects, int64_t count, int64_t offset, const uint64_t* handles) noexcept {
  for (int64_t i = 0; i < count; i++)
    if (reinterpret_cast<uint64_t>(tensor_of(objects[i], offset)) != handles[i]) return 0;
  return 1;
}

// The form of each tensor. Returns 0, or 2 if one of the tensors has none.
int ftrain_tensors_forms(const char* const* objects, int64_t count, int64_t offset, uint64_t* forms) noexcept {
  try {
    for (int64_t i = 0; i < count; i++) forms[i] = form_of(tensor_of(objects[i], offset));
    return 0;
  } catch (...) {
    return 2;
  }
}

// Of each tensor how often torch counted a change in place (0 where it does not count). Returns 0 if all bytes lie at
// these addresses and have these forms, 1 if some do not, 2 if one of the tensors has no memory.
int ftrain_tensors_look(
    const char* const* objects, int64_t count, int64_t offset, const uint64_t* addresses, const uint64_t* forms,
    int64_t* versions) noexcept {
  try {
    uint64_t moved = 0;
    for (int64_t i = 0; i < count; i++) {
      if (i + 2 * AHEAD < count) fetch(objects[i + 2 * AHEAD] + offset, sizeof(void*));
      if (i + AHEAD < count) fetch(tensor_of(objects[i + AHEAD], offset), sizeof(c10::TensorImpl));
      if (i + AHEAD / 2 < count)
        fetch(tensor_of(objects[i + AHEAD / 2], offset)->unsafe_storage().unsafeGetStorageImpl(), 128);
      const c10::TensorImpl* tensor = tensor_of(objects[i], offset);
      const c10::VariableVersion& counter = tensor->version_counter();
      moved |= (addresses[i] ^ reinterpret_cast<uint64_t>(tensor->data())) | (forms[i] ^ form_of(tensor));
      versions[i] = counter.enabled() ? counter.current_version() : 0;
    }
    return moved != 0;
  } catch (...) {
    return 2;
  }
}

// How many of these tensors have a gradient; -1: that cannot be told.
int64_t ftrain_tensors_with_gradient(const char* const* objects, int64_t count, int64_t offset) noexcept {
  try {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) found += tensor_of(objects[i], offset)->grad().defined();
    return found;
  } catch (...) {
    return -1;
  }
}

// Whether each container holds the very things in `items`: a list as many as its size; a dictionary so many pairs of key
// and value, in their order; and of one of which only members count, those values under those keys.
int ftrain_containers_same(
    const Kind* kinds, void* const* containers, const int64_t* sizes, int64_t count, void* const* items) noexcept {
  for (int64_t i = 0; i < count; i++) {
    if (i + AHEAD < count) fetch(containers[i + AHEAD], 64);
    if (!has_items(kinds[i], containers[i], sizes[i], items)) return 0;
    items += kinds[i] == LIST ? sizes[i] : 2 * sizes[i];
  }
  return 1;
}

}  // extern "C"
