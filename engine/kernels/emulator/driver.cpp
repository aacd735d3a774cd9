// The part of NVIDIA's driver interface that the engine calls, over the emulation of fibers.cpp: libcuda.so.1 and
// libnvidia-ml.so.1 for tests of the real driver path on machines without a device. Never part of the server.
//
// A stream is a list of what was asked of it, done when somebody waits for it and not before: so memory that is written too
// early, or read too early, gives wrong results here, as it may on a device. A function is found in a module only if the
// module's image, a cubin or PTX of the real packs, has it. An error of a launch sticks to its context, as on a device.
//
// A capture takes launches alone: what waits, allocates, frees or copies meanwhile breaks it, as most of that does on a device.
// A kernel may start early (programmatic stream serialization) only if it is code for a chip that can wait for its inputs:
// a device would take other code, too, and compute nonsense now and then.
//
// What it is told by its environment:
//   EMULATED_DEVICES      how many there are (1); 0: cuInit says that there is none
//   EMULATED_CAPABILITY   90 is sm_90
//   EMULATED_PROCESSORS   multiprocessors that it says it has (132)
//   EMULATED_MEMORY       bytes of the device
//   EMULATED_MEMORY_LATER bytes that it has once a context has been destroyed after an error
//   EMULATED_FAILS        a file: when it is there, it is removed and the launch, of a kernel or a graph, fails
//   EMULATED_IDLE         kernels do nothing: what is left is the host's work
//   EMULATED_GRAPH_MAX    kernels that a graph may have
//   EMULATED_KERNEL_BYTES bytes of the device that each kernel of a graph takes (8192)
#include "cuda.hpp"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

extern "C" {
int emulator_launch(const char*, const unsigned*, unsigned, size_t, void**, uint64_t);
const size_t* emulator_sizes(const char*);
uint64_t emulator_alloc(size_t);
void emulator_free(uint64_t, size_t);
}

namespace {

enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_IMAGE = 200,
              INVALID_CONTEXT = 201, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
              LAUNCH_OUT_OF_RESOURCES = 701, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

struct Context;
using Work = std::function<Result()>;
// Kernels in their order, and how many of them may start early.
struct Graph { Context* context; std::vector<Work> kernels; size_t early; };
// `done` counts what it has done since it was made; `asked` is what it has not.
struct Stream { Context* context; std::deque<Work> asked; size_t done; Graph* captured; bool capture_broken; };
// `place` is what the stream had been asked when the event was recorded.
struct Event { Stream* stream; size_t place; };
struct Module { Context* context; std::string image; };
struct Function { Module* module; std::string name; size_t shared_bytes; };
struct Context {
  Result broken = SUCCESS;
  std::vector<Stream*> streams;
  std::map<uint64_t, size_t> memory;
  std::map<std::string, Function*> functions;
  std::vector<Module*> modules;
  // What tests count: launches of single kernels, of these those that may start early, captures, launches of graphs, graphs
  // that are there, how many kernels of the last captured one may start early; and what is not done yet.
  uint64_t counts[7] = {};
  // A test wants the next launch to fail.
  bool is_to_fail = false;
};
enum Count { LAUNCHES, EARLY, CAPTURES, GRAPH_LAUNCHES, GRAPHS, EARLY_IN_GRAPH, PENDING };

std::mutex mutex;
bool initialised = false, shrunk = false;
size_t used = 0;
thread_local Context* current = nullptr;

size_t setting(const char* name, size_t otherwise) {
  const char* text = getenv(name);
  return text ? strtoull(text, nullptr, 10) : otherwise;
}
size_t memory_bytes() {
  size_t all = setting("EMULATED_MEMORY", size_t{1} << 32);
  return shrunk ? setting("EMULATED_MEMORY_LATER", all) : all;
}

size_t kernel_bytes() { return setting("EMULATED_KERNEL_BYTES", 8192); }

// Does what was asked of the stream, up to a place.
Result catch_up(Stream* stream, size_t place) {
  Context* context = stream->context;
  while (stream->done < place && context->broken == SUCCESS) {
    Work work = std::move(stream->asked.front());
    stream->asked.pop_front();
    ++stream->done;
    Result result = work();
    if (result != SUCCESS) context->broken = result;
  }
  return context->broken;
}
size_t asked_of(const Stream* stream) { return stream->done + stream->asked.size(); }
// True while the current context captures, which is then over: all that is asked in a context here comes from one thread.
bool is_capturing() {
  bool any = false;
  for (Stream* stream : current->streams) {
    if (stream->captured) any = stream->capture_broken = true;
  }
  return any;
}
Result wait_for_all(Context* context) {
  for (Stream* stream : context->streams) catch_up(stream, asked_of(stream));
  return context->broken;
}

// The bytes of an image: a cubin says where its last part ends, PTX ends with a zero.
std::string image_of(const char* at) {
  if (memcmp(at, "\177ELF", 4) != 0) return strstr(at, ".version") ? std::string(at) : std::string();
  auto word = [&](size_t from, int bytes) { uint64_t v = 0; memcpy(&v, at + from, bytes); return v; };
  uint64_t sections = word(40, 8), section_bytes = word(58, 2), count = word(60, 2);
  uint64_t end = sections + section_bytes * count, programs_end = word(32, 8) + word(54, 2) * word(56, 2);
  if (programs_end > end) end = programs_end;
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t header = sections + i * section_bytes, last = word(header + 24, 8) + word(header + 32, 8);
    if (word(header + 4, 4) != 8 && last > end) end = last;
  }
  return std::string(at, end);
}
// The chip that code is for: 90 is sm_90. PTX of the packs is for the oldest.
unsigned chip_of(const std::string& image) {
  if (image[0] != '\177') return 80;
  return static_cast<unsigned char>(image[7] == 0x33 ? image[48] : image[49]);
}
bool has_kernel(const std::string& image, const std::string& name) {
  if (image[0] == '\177') return image.find(std::string(1, '\0') + ".text." + name + std::string(1, '\0')) != std::string::npos;
  return image.find(".entry " + name + "(") != std::string::npos;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) int
#define LOCKED std::lock_guard<std::mutex> guard(mutex); if (!initialised) return NOT_INITIALIZED
#define IN_CONTEXT LOCKED; if (!current) return INVALID_CONTEXT; if (current->broken) return current->broken
// What may not happen while this thread captures: it breaks the capture, too.
#define OUTSIDE_OF_CAPTURE IN_CONTEXT; if (is_capturing()) return CAPTURE_UNSUPPORTED

EXPORT cuInit(unsigned) {
  std::lock_guard<std::mutex> guard(mutex);
  if (setting("EMULATED_DEVICES", 1) == 0) return NO_DEVICE;
  initialised = true;
  return SUCCESS;
}
#ifndef OLD_DRIVER
EXPORT cuDriverGetVersion(int* version) { *version = 12090; return SUCCESS; }
EXPORT cuDeviceGetCount(int* count) { LOCKED; *count = setting("EMULATED_DEVICES", 1); return SUCCESS; }
EXPORT cuDeviceGet(int* device, int index) { LOCKED; *device = index; return SUCCESS; }
EXPORT cuDeviceGetName(char* name, int len, int) { LOCKED; snprintf(name, len, "Emulated device"); return SUCCESS; }
EXPORT cuDeviceGetPCIBusId(char* id, int len, int device) { LOCKED; snprintf(id, len, "0000:%02X:00.0", device); return SUCCESS; }
EXPORT cuDeviceTotalMem_v2(size_t* bytes, int) { LOCKED; *bytes = memory_bytes(); return SUCCESS; }
EXPORT cuDeviceGetAttribute(int* value, int attribute, int) {
  LOCKED;
  int capability = setting("EMULATED_CAPABILITY", 90);
  switch (attribute) {
    case 16: *value = setting("EMULATED_PROCESSORS", 132); return SUCCESS;
    case 75: *value = capability / 10; return SUCCESS;
    case 76: *value = capability % 10; return SUCCESS;
    default: return INVALID_VALUE;
  }
}
EXPORT cuGetErrorName(int error, const char** name) {
  static const std::map<int, const char*> names = {
      {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {3, "CUDA_ERROR_NOT_INITIALIZED"},
      {100, "CUDA_ERROR_NO_DEVICE"}, {200, "CUDA_ERROR_INVALID_IMAGE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"},
      {401, "CUDA_ERROR_ILLEGAL_STATE"}, {600, "CUDA_ERROR_NOT_READY"},
      {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}, {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
      {500, "CUDA_ERROR_NOT_FOUND"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"}};
  auto found = names.find(error);
  if (found == names.end()) return INVALID_VALUE;
  *name = found->second;
  return SUCCESS;
}
EXPORT cuGetErrorString(int, const char** text) { *text = "said by the emulated driver"; return SUCCESS; }

EXPORT cuCtxCreate_v2(Context** context, unsigned, int) { LOCKED; *context = current = new Context; return SUCCESS; }
EXPORT cuCtxSetCurrent(Context* context) { LOCKED; current = context; return SUCCESS; }
EXPORT cuCtxDestroy_v2(Context* context) {
  LOCKED;
  wait_for_all(context);
  for (auto [at, bytes] : context->memory) { emulator_free(at, bytes); used -= bytes; }
  for (Stream* stream : context->streams) delete stream;
  for (auto& [name, function] : context->functions) delete function;
  for (Module* module : context->modules) delete module;
  if (context->broken) shrunk = true;
  if (current == context) current = nullptr;
  delete context;
  return SUCCESS;
}

EXPORT cuStreamCreate(Stream** stream, unsigned) {
  IN_CONTEXT;
  *stream = new Stream{current, {}, 0, nullptr, false};
  current->streams.push_back(*stream);
  return SUCCESS;
}
// The stream itself goes with its context: events may still name it.
EXPORT cuStreamDestroy_v2(Stream* stream) { LOCKED; return catch_up(stream, asked_of(stream)); }
EXPORT cuStreamSynchronize(Stream* stream) { OUTSIDE_OF_CAPTURE; return catch_up(stream, asked_of(stream)); }
EXPORT cuEventCreate(Event** event, unsigned) { IN_CONTEXT; *event = new Event{nullptr, 0}; return SUCCESS; }
EXPORT cuEventDestroy_v2(Event* event) { LOCKED; delete event; return SUCCESS; }
EXPORT cuEventRecord(Event* event, Stream* stream) { OUTSIDE_OF_CAPTURE; *event = {stream, asked_of(stream)}; return SUCCESS; }
EXPORT cuEventSynchronize(Event* event) {
  OUTSIDE_OF_CAPTURE;
  return event->stream ? catch_up(event->stream, event->place) : SUCCESS;
}
// Each look finds one thing more done.
EXPORT cuEventQuery(Event* event) {
  OUTSIDE_OF_CAPTURE;
  Stream* stream = event->stream;
  if (!stream || event->place <= stream->done) return SUCCESS;
  Result result = catch_up(stream, stream->done + 1);
  return result != SUCCESS ? result : event->place <= stream->done ? SUCCESS : NOT_READY;
}

EXPORT cuMemGetInfo_v2(size_t* free, size_t* total) {
  IN_CONTEXT;
  *total = memory_bytes();
  *free = used < *total ? *total - used : 0;
  return SUCCESS;
}
EXPORT cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  OUTSIDE_OF_CAPTURE;
  if (used + bytes > memory_bytes()) return OUT_OF_MEMORY;
  *address = emulator_alloc(bytes);
  if (!*address) return OUT_OF_MEMORY;
  current->memory[*address] = bytes;
  used += bytes;
  return SUCCESS;
}
EXPORT cuMemFree_v2(uint64_t address) {
  OUTSIDE_OF_CAPTURE;
  auto found = current->memory.find(address);
  if (found == current->memory.end()) return INVALID_VALUE;
  wait_for_all(current);
  emulator_free(address, found->second);
  used -= found->second;
  current->memory.erase(found);
  return SUCCESS;
}
EXPORT cuMemHostAlloc(void** at, size_t bytes, unsigned) { OUTSIDE_OF_CAPTURE; *at = malloc(bytes); return *at ? SUCCESS : OUT_OF_MEMORY; }
EXPORT cuMemFreeHost(void* at) { LOCKED; free(at); return SUCCESS; }

namespace {
// True when all of it is memory that the context was given.
bool is_inside(Context* context, uint64_t address, size_t bytes) {
  auto after = context->memory.upper_bound(address);
  if (after == context->memory.begin()) return false;
  auto [start, len] = *std::prev(after);
  return address + bytes <= start + len;
}
int copy(Stream* stream, void* to, const void* from, size_t bytes, uint64_t on_device) {
  if (!is_inside(stream->context, on_device, bytes)) return INVALID_VALUE;
  stream->asked.push_back([=] { memcpy(to, from, bytes); return SUCCESS; });
  return SUCCESS;
}
}  // namespace
EXPORT cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
  OUTSIDE_OF_CAPTURE;
  return copy(stream, reinterpret_cast<void*>(to), from, bytes, to);
}
EXPORT cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
  OUTSIDE_OF_CAPTURE;
  return copy(stream, to, reinterpret_cast<void*>(from), bytes, from);
}

EXPORT cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, Stream* stream) {
  OUTSIDE_OF_CAPTURE;
  if (!is_inside(stream->context, at, bytes)) return INVALID_VALUE;
  stream->asked.push_back([=] { memset(reinterpret_cast<void*>(at), value, bytes); return SUCCESS; });
  return SUCCESS;
}

EXPORT cuModuleLoadData(Module** module, const void* image) {
  OUTSIDE_OF_CAPTURE;
  std::string bytes = image_of(static_cast<const char*>(image));
  if (bytes.empty()) return INVALID_IMAGE;
  *module = new Module{current, std::move(bytes)};
  current->modules.push_back(*module);
  return SUCCESS;
}
EXPORT cuModuleGetFunction(Function** function, Module* module, const char* name) {
  IN_CONTEXT;
  if (!has_kernel(module->image, name) || !emulator_sizes(name)) return NOT_FOUND;
  Function*& kept = current->functions[name];
  if (!kept) kept = new Function{module, name, 48 * 1024};
  *function = kept;
  return SUCCESS;
}
EXPORT cuFuncSetAttribute(Function* function, int attribute, int value) {
  IN_CONTEXT;
  if (attribute != 8 || value < 0 || value > 227 * 1024) return INVALID_VALUE;
  function->shared_bytes = value;
  return SUCCESS;
}
namespace {
struct Attribute { int id; char pad[4]; union { char all[64]; int number; }; };
struct Config { unsigned x, y, z, threads, threads_y, threads_z, shared_bytes; Stream* stream; Attribute* attributes; unsigned attribute_count; };
static_assert(sizeof(Attribute) == 72 && sizeof(Config) == 56, "as in cuda.h");

Result ask(Stream* stream, Work work) {
  const char* sign = getenv("EMULATED_FAILS");
  bool fails = std::exchange(stream->context->is_to_fail, false) || (sign && remove(sign) == 0);
  stream->asked.push_back(fails ? Work([] { return ILLEGAL_ADDRESS; }) : std::move(work));
  // A list without an end would be memory without an end.
  return stream->asked.size() >= 4096 ? catch_up(stream, asked_of(stream)) : SUCCESS;
}
}  // namespace
EXPORT cuLaunchKernelEx(const Config* config, Function* function, void** arguments, void**) {
  IN_CONTEXT;
  auto [x, y, z, threads, threads_y, threads_z, shared_bytes, stream, attributes, attribute_count] = *config;
  if (threads_y != 1 || threads_z != 1 || threads > 1024 || threads == 0) return INVALID_VALUE;
  if (x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535) return INVALID_VALUE;
  if (shared_bytes > function->shared_bytes) return INVALID_VALUE;
  bool early = false;
  for (unsigned i = 0; i < attribute_count; ++i) {
    // Programmatic stream serialization is the sixth.
    if (attributes[i].id != 6 || chip_of(function->module->image) < 90) return INVALID_VALUE;
    early = attributes[i].number != 0;
  }
  // Arguments are the caller's again when this returns.
  std::vector<std::vector<char>> kept;
  for (const size_t* size = emulator_sizes(function->name.c_str()); *size; ++size) {
    const char* from = static_cast<const char*>(arguments[kept.size()]);
    kept.emplace_back(from, from + *size);
  }
  Work work = [=, x = x, y = y, z = z, threads = threads, shared_bytes = shared_bytes, name = function->name]() mutable {
    static const bool idle = setting("EMULATED_IDLE", 0) != 0;
    if (idle) return SUCCESS;
    std::vector<void*> pointers;
    for (auto& argument : kept) pointers.push_back(argument.data());
    unsigned grid[] = {x, y, z};
    return emulator_launch(name.c_str(), grid, threads, shared_bytes, pointers.data(), 0) == 0 ? SUCCESS : LAUNCH_OUT_OF_RESOURCES;
  };
  if (stream->captured) {
    stream->captured->kernels.push_back(std::move(work));
    stream->captured->early += early;
    return SUCCESS;
  }
  ++current->counts[LAUNCHES];
  current->counts[EARLY] += early;
  return ask(stream, std::move(work));
}

EXPORT cuStreamBeginCapture_v2(Stream* stream, int mode) {
  IN_CONTEXT;
  if (stream->captured) return ILLEGAL_STATE;
  if (mode < 0 || mode > 2) return INVALID_VALUE;
  stream->captured = new Graph{current, {}, 0};
  stream->capture_broken = false;
  return SUCCESS;
}
EXPORT cuStreamEndCapture(Stream* stream, Graph** graph) {
  IN_CONTEXT;
  *graph = nullptr;
  if (!stream->captured) return ILLEGAL_STATE;
  Graph* captured = std::exchange(stream->captured, nullptr);
  if (stream->capture_broken) {
    delete captured;
    return CAPTURE_INVALIDATED;
  }
  ++current->counts[CAPTURES];
  current->counts[EARLY_IN_GRAPH] = captured->early;
  *graph = captured;
  return SUCCESS;
}
EXPORT cuGraphInstantiateWithFlags(std::shared_ptr<Graph>** launched, Graph* graph, unsigned long long flags) {
  OUTSIDE_OF_CAPTURE;
  if (flags != 0) return INVALID_VALUE;
  // For tests: a driver that makes no graphs of what has more kernels than this.
  if (graph->kernels.size() > setting("EMULATED_GRAPH_MAX", ~size_t{0})) return OUT_OF_MEMORY;
  if (used + graph->kernels.size() * kernel_bytes() > memory_bytes()) return OUT_OF_MEMORY;
  used += graph->kernels.size() * kernel_bytes();
  *launched = new std::shared_ptr<Graph>(new Graph(*graph));
  ++current->counts[GRAPHS];
  return SUCCESS;
}
EXPORT cuGraphDestroy(Graph* graph) { LOCKED; delete graph; return SUCCESS; }
// What is under way is done nevertheless.
EXPORT cuGraphExecDestroy(std::shared_ptr<Graph>* launched) {
  LOCKED;
  --(*launched)->context->counts[GRAPHS];
  used -= (*launched)->kernels.size() * kernel_bytes();
  delete launched;
  return SUCCESS;
}
EXPORT cuGraphLaunch(std::shared_ptr<Graph>* launched, Stream* stream) {
  OUTSIDE_OF_CAPTURE;
  if ((*launched)->context != stream->context) return INVALID_VALUE;
  ++current->counts[GRAPH_LAUNCHES];
  return ask(stream, [graph = *launched]() {
    for (Work& kernel : graph->kernels) {
      if (Result result = kernel(); result != SUCCESS) return result;
    }
    return SUCCESS;
  });
}
// For tests, of the context that is current on this thread: what it counts (see `Count`), and that its next launch fails.
extern "C" __attribute__((visibility("default"))) void emulator_counts(uint64_t* counts) {
  std::lock_guard<std::mutex> guard(mutex);
  current->counts[PENDING] = 0;
  for (Stream* stream : current->streams) current->counts[PENDING] += stream->asked.size();
  memcpy(counts, current->counts, sizeof current->counts);
}
extern "C" __attribute__((visibility("default"))) void emulator_fail() {
  std::lock_guard<std::mutex> guard(mutex);
  current->is_to_fail = true;
}

// What is asked of NVML: use of the device's memory and time.
EXPORT nvmlInit_v2() { return 0; }
EXPORT nvmlShutdown() { return 0; }
EXPORT nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** device) { *device = const_cast<char*>(id); return *id ? 0 : 2; }
EXPORT nvmlDeviceGetUtilizationRates(void*, unsigned* rates) { rates[0] = 42; rates[1] = 17; return 0; }
EXPORT nvmlDeviceGetMemoryInfo(void*, unsigned long long* sizes) {
  std::lock_guard<std::mutex> guard(mutex);
  sizes[0] = memory_bytes();
  sizes[1] = memory_bytes() - used;
  sizes[2] = used;
  return 0;
}
#endif
