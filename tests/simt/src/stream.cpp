// Streams, events, and graphs made by capture.
#include "stream.h"

#include <chrono>
#include <set>
#include <utility>

using namespace simt;

std::recursive_mutex driver_lock;

static Stream default_stream;
static std::set<Stream*> streams;
static std::set<Event*> events;
static std::set<Graph*> graphs;
static std::set<GraphExec*> executables;
static std::set<Capture*> captures;

// 0, 1 (legacy) and 2 (per thread) name the default stream.
static bool is_default(CUstream s) { return reinterpret_cast<uintptr_t>(s) <= 2; }
bool is_stream(CUstream s) { return is_default(s) || streams.count(s); }
Stream& stream_of(CUstream s) { return is_default(s) ? default_stream : *s; }

static void begin(Work& w, uint32_t& chain) {
    if (w.begun) return;
    w.begun = w.launch();
    begin(*w.begun, w.follows ? chain : 0);
    chain = w.begun->chain;
}

// Does what is at the front. Before a launch, the dependents after it run as far as they may before
// it is done: so they see nothing that it writes, as no cache need show it to them. `after(i)` is
// the i-th that is queued after it, or null.
template <class After>
static CUresult perform(Work& work, uint32_t& chain, After after) {
    if (!work.launch) {
        chain = 0;
        return work.run();
    }
    begin(work, chain);
    const Grid* before = work.begun.get();
    for (size_t i = 0; i == 0 || before->next_may_begin(); i++) {
        Work* next = after(i);
        if (!next || !next->follows) break;
        const bool is_new = !next->begun;
        begin(*next, chain);
        Grid& grid = *next->begun;
        if (is_new) {
            grid.prior_done = before->done();
            run_early(grid);
        }
        if (grid.faulted) return lose_context(grid.out_of_bounds);
        before = &grid;
    }
    return finish(*work.begun) ? CUDA_SUCCESS : lose_context(work.begun->out_of_bounds);
}

CUresult drain(Stream& s, uint64_t until) {
    if (s.running) return CUDA_SUCCESS;  // it waits for itself: already in order
    s.running = true;
    while (s.done < until && !s.queue.empty()) {
        Work work = std::move(s.queue.front());
        s.queue.pop_front();
        s.done++;
        if (!primary.lost)
            perform(work, s.chain,
                    [&](size_t i) { return i < s.queue.size() ? &s.queue[i] : nullptr; });
    }
    s.running = false;
    return primary.lost;
}

CUresult drain_everything() {
    drain(default_stream, ~0ull);
    for (Stream* s : streams) drain(*s, ~0ull);
    return primary.lost;
}

CUresult enqueue(CUstream handle, Work work) {
    Stream& s = stream_of(handle);
    if (s.capture) {
        if (s.capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        auto& captured = s.capture->work;
        work.follows =
            work.dependent && s.capture->last == &s && !captured.empty() && captured.back().launch;
        s.capture->last = &s;
        captured.push_back(std::move(work));
        s.captured_ops++;
        return CUDA_SUCCESS;
    }
    work.follows = work.dependent && s.ends_in_launch;
    s.ends_in_launch = work.launch != nullptr;
    // The default stream waits for all blocking ones, and they for it.
    for (Stream* other : streams)
        if (is_default(handle) && other->blocking) drain(*other, ~0ull);
    s.queue.push_back(std::move(work));
    s.enqueued++;
    return is_default(handle) ? drain(s, ~0ull) : CUDA_SUCCESS;
}

// What this thread has asked for: global (0), its own captures only (1), or relaxed (2).
static thread_local int thread_mode = 0;

// In a global capture of any thread, or one of this thread that is not relaxed, calls that may
// wait for streams are refused, and end the capture; unless the thread has asked for less.
bool unsafe_call_during_capture() {
    for (Capture* c : captures) {
        const bool mine = c->thread == std::this_thread::get_id();
        const bool others = c->mode == 0 && thread_mode == 0;
        if (mine ? c->mode != 2 && thread_mode != 2 : others) {
            c->invalidated = true;
            return true;
        }
    }
    return false;
}

static CUresult refuse_in_capture(Stream& s) {
    if (!s.capture) return CUDA_SUCCESS;
    s.capture->invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CU_API cuStreamCreate(CUstream* out, unsigned flags) {
    CU_ENTER;
    if (!out || flags > 1) return CUDA_ERROR_INVALID_VALUE;
    *out = *streams.insert(new Stream).first;
    (*out)->blocking = !(flags & 1);
    return CUDA_SUCCESS;
}

CU_API cuStreamDestroy_v2(CUstream s) {
    CU_ENTER;
    if (is_default(s) || !is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    CU_TRY(refuse_in_capture(*s));
    // What was enqueued still happens, as with the driver; handles held by records stay valid.
    drain(*s, ~0ull);
    streams.erase(s);
    return CUDA_SUCCESS;
}

CU_API cuStreamSynchronize(CUstream s) {
    CU_ENTER;
    if (!is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    CU_TRY(refuse_in_capture(stream_of(s)));
    for (Stream* other : streams)
        if (is_default(s) && other->blocking) drain(*other, ~0ull);
    return drain(stream_of(s), ~0ull);
}

// Every question lets one operation happen: who polls makes progress, and meets NOT_READY.
CU_API cuStreamQuery(CUstream handle) {
    CU_ENTER;
    if (!is_stream(handle)) return CUDA_ERROR_INVALID_HANDLE;
    Stream& s = stream_of(handle);
    CU_TRY(refuse_in_capture(s));
    if (s.queue.empty()) return CUDA_SUCCESS;
    CU_TRY(drain(s, s.done + 1));
    return s.queue.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CU_API cuStreamGetCtx(CUstream s, CUcontext* out) {
    CU_ENTER;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (!is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    *out = context_told();
    return CUDA_SUCCESS;
}

CU_API cuStreamWaitEvent(CUstream handle, CUevent e, unsigned) {
    CU_ENTER;
    if (!is_stream(handle) || !events.count(e)) return CUDA_ERROR_INVALID_HANDLE;
    Stream& s = stream_of(handle);
    const auto at = e->last;
    if (!at) return CUDA_SUCCESS;
    if (at->capture && captures.count(at->capture)) {
        Capture* c = at->capture;
        if (s.capture && s.capture != c) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        c->last = nullptr;
        if (!s.capture) {
            s.capture = c;
            s.captured_ops = 1;  // it has to be waited for, even if nothing else is captured
            s.rejoined = 0;
            c->joined.push_back(&s);
        } else {
            at->stream->rejoined = std::max(at->stream->rejoined, at->captured_ops);
        }
        return CUDA_SUCCESS;
    }
    // A capture does not know what came before it.
    if (s.capture) {
        s.capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    return enqueue(handle, [at] { return drain(*at->stream, at->position); });
}

// ---- events

CU_API cuEventCreate(CUevent* out, unsigned flags) {
    CU_ENTER;
    if (!out || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    *out = *events.insert(new Event).first;
    (*out)->timing = !(flags & 2);
    return CUDA_SUCCESS;
}

CU_API cuEventDestroy_v2(CUevent e) {
    CU_ENTER;
    if (!events.erase(e)) return CUDA_ERROR_INVALID_HANDLE;
    delete e;
    return CUDA_SUCCESS;
}

CU_API cuEventRecord(CUevent e, CUstream handle) {
    CU_ENTER;
    if (!events.count(e) || !is_stream(handle)) return CUDA_ERROR_INVALID_HANDLE;
    Stream& s = stream_of(handle);
    auto at = std::make_shared<Record>();
    at->stream = &s;
    if (s.capture) {
        at->capture = s.capture;
        at->captured_ops = s.captured_ops;
        e->last = at;
        return CUDA_SUCCESS;
    }
    at->position = s.enqueued + 1;
    e->last = at;
    return enqueue(handle, [at] {
        const auto now = std::chrono::steady_clock::now().time_since_epoch();
        at->seconds = std::chrono::duration<double>(now).count();
        return CUDA_SUCCESS;
    });
}

static CUresult record_of(CUevent e, std::shared_ptr<Record>& at) {
    if (!events.count(e)) return CUDA_ERROR_INVALID_HANDLE;
    at = e->last;
    return at && at->capture ? CUDA_ERROR_CAPTURED_EVENT : CUDA_SUCCESS;
}

CU_API cuEventQuery(CUevent e) {
    CU_ENTER;
    std::shared_ptr<Record> at;
    CU_TRY(record_of(e, at));
    if (!at || at->stream->done >= at->position) return CUDA_SUCCESS;
    CU_TRY(drain(*at->stream, at->stream->done + 1));
    return at->stream->done >= at->position ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CU_API cuEventSynchronize(CUevent e) {
    CU_ENTER;
    std::shared_ptr<Record> at;
    CU_TRY(record_of(e, at));
    return at ? drain(*at->stream, at->position) : CUDA_SUCCESS;
}

CU_API cuEventElapsedTime_v2(float* ms, CUevent a, CUevent b) {
    CU_ENTER;
    std::shared_ptr<Record> from, to;
    CU_TRY(record_of(a, from));
    CU_TRY(record_of(b, to));
    if (!ms) return CUDA_ERROR_INVALID_VALUE;
    if (!from || !to || !a->timing || !b->timing) return CUDA_ERROR_INVALID_HANDLE;
    if (from->stream->done < from->position || to->stream->done < to->position)
        return CUDA_ERROR_NOT_READY;
    *ms = static_cast<float>((to->seconds - from->seconds) * 1e3);
    return CUDA_SUCCESS;
}
CU_API cuEventElapsedTime(float* ms, CUevent a, CUevent b) {
    return cuEventElapsedTime_v2(ms, a, b);
}

// ---- capture and graphs

CU_API cuStreamIsCapturing(CUstream s, int* status) {
    CU_ENTER;
    if (!status) return CUDA_ERROR_INVALID_VALUE;
    if (!is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    const Capture* c = stream_of(s).capture;
    *status = !c ? 0 : c->invalidated ? 2 : 1;
    return CUDA_SUCCESS;
}

CU_API cuStreamBeginCapture_v2(CUstream s, int mode) {
    CU_ENTER;
    if (!is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    if (mode < 0 || mode > 2) return CUDA_ERROR_INVALID_VALUE;
    // The legacy stream cannot be captured.
    if (is_default(s)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (s->capture) return CUDA_ERROR_INVALID_VALUE;
    auto* c = new Capture{{}, mode, s, std::this_thread::get_id(), false, {}};
    captures.insert(c);
    s->capture = c;
    s->captured_ops = s->rejoined = 0;
    return CUDA_SUCCESS;
}

// Of the thread alone: no context is looked at.
CU_API cuThreadExchangeStreamCaptureMode(int* mode) {
    CU_LOCKED;
    CU_TRY(asked_to_fail(__func__));
    if (!mode || *mode < 0 || *mode > 2) return CUDA_ERROR_INVALID_VALUE;
    std::swap(*mode, thread_mode);
    return CUDA_SUCCESS;
}

CU_API cuStreamEndCapture(CUstream s, CUgraph* out) {
    CU_ENTER;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = nullptr;
    if (!is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    Capture* c = stream_of(s).capture;
    if (!c) return CUDA_ERROR_INVALID_VALUE;
    if (c->origin != s) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    if (c->mode != 2 && c->thread != std::this_thread::get_id())
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    CUresult result = c->invalidated ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    for (Stream* j : c->joined) {
        if (!result && j->rejoined < j->captured_ops) result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
        j->capture = nullptr;
    }
    s->capture = nullptr;
    if (!result) {
        *out = new Graph{std::move(c->work)};
        graphs.insert(*out);
    }
    captures.erase(c);
    delete c;
    return result;
}

CU_API cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph g, unsigned long long) {
    CU_ENTER;
    if (!out || !graphs.count(g)) return CUDA_ERROR_INVALID_VALUE;
    *out = new GraphExec{g->work};
    executables.insert(*out);
    return CUDA_SUCCESS;
}

CU_API cuGraphLaunch(CUgraphExec g, CUstream s) {
    CU_ENTER;
    if (!executables.count(g)) return CUDA_ERROR_INVALID_VALUE;
    if (!is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    return enqueue(s, [work = g->work] {
        std::vector<Work> copy = work;
        uint32_t chain = 0;
        for (size_t at = 0; at < copy.size() && !primary.lost; at++)
            perform(copy[at], chain, [&](size_t i) {
                return at + 1 + i < copy.size() ? &copy[at + 1 + i] : nullptr;
            });
        return primary.lost;
    });
}

CU_API cuGraphExecDestroy(CUgraphExec g) {
    CU_ENTER;
    if (!executables.erase(g)) return CUDA_ERROR_INVALID_VALUE;
    delete g;
    return CUDA_SUCCESS;
}

CU_API cuGraphDestroy(CUgraph g) {
    CU_ENTER;
    if (!graphs.erase(g)) return CUDA_ERROR_INVALID_VALUE;
    delete g;
    return CUDA_SUCCESS;
}

size_t streams_alive() { return streams.size(); }
size_t events_alive() { return events.size(); }
size_t graphs_alive() { return graphs.size(); }
size_t executables_alive() { return executables.size(); }

void streams_reset() {
    for (Stream* s : streams) {
        s->queue.clear();
        s->done = s->enqueued;
        s->capture = nullptr;
        s->ends_in_launch = false;
        s->chain = 0;
    }
    default_stream.queue.clear();
    default_stream.done = default_stream.enqueued;
    default_stream.capture = nullptr;
    default_stream.ends_in_launch = false;
    default_stream.chain = 0;
    for (Capture* c : captures) delete c;
    captures.clear();
}
