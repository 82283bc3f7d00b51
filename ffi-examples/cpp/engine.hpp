// One thread that runs steps; any number of threads that submit and cancel.
#ifndef SERVE_ENGINE_HPP
#define SERVE_ENGINE_HPP

#include <array>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <inflight.hpp>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "doorbell.hpp"
#include "paged.hpp"

namespace serve {

/// How a request ended.
struct ending {
    enum kind { finished, cancelled, refused, failed } how;
    inflight::finish why = inflight::finish::none;
    /// Why it was refused.
    inflight::status code = inflight::status::ok;
};

/// Where a request's tokens go. Called on the engine's thread, which waits meanwhile: hand over and
/// return. `ended` is called once, and nothing after it.
struct stream {
    std::function<void(token, inflight::span<const float> logits)> got;
    std::function<void(const ending&)> ended;
};

class engine {
   public:
    engine(const model& of, const placement& on, const capacity& room)
        : model_(of, on, room),
          scheduler_(config_for(room)),
          submitter_(scheduler_.make_submitter()) {
        scheduler_.set_wake(doorbell::ring, &bell_);
    }

    engine(const engine&) = delete;
    engine& operator=(const engine&) = delete;
    ~engine() { stop(); }

    void start() {
        worker_ = std::thread([this] { work(); });
    }

    /// Lets all requests end, then the thread.
    void stop() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        bell_.ring();
        if (worker_.joinable()) {
            worker_.join();
        }
    }

    /// Any thread. The number of the request; a failure of the group `capacity` is for trying
    /// again.
    inflight::result<std::uint64_t> submit(const std::vector<token>& prompt,
                                           std::uint32_t max_tokens, stream to) {
        std::uint64_t id = 0;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (stopping_) {
                return inflight::failure(inflight::status::device, "", "the engine has stopped");
            }
            id = next_id_++;
            // Before the request is handed over: its first token may be there before this returns.
            streams_.emplace(id, std::move(to));
        }
        const auto submitted = submitter_.try_submit(inflight::request(id, prompt, max_tokens));
        if (!submitted) {
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                streams_.erase(id);
            }
            // It may be the last that the end waits for.
            bell_.ring();
            return submitted.why();
        }
        return id;
    }

    /// Any thread. The stream's end tells whether it came in time.
    void cancel(std::uint64_t id) { submitter_.cancel(id); }

    /// Any thread. Ends a request after its first `keep_tokens` tokens, as at a stop string that
    /// its reader has found.
    void finish(std::uint64_t id, std::uint32_t keep_tokens) { submitter_.finish(id, keep_tokens); }

    /// The next three once the engine has stopped.
    inflight::scheduler_stats stats() { return scheduler_.stats(); }
    const moved_blocks& moved() const { return model_.moved(); }
    void verify() {
        if (failure_) {
            std::rethrow_exception(failure_);
        }
        scheduler_.verify();
    }

   private:
    static inflight::scheduler_config config_for(const capacity& room) {
        inflight::scheduler_config config;
        config.num_blocks = room.num_blocks;
        config.num_host_blocks = room.num_host_blocks;
        config.swap = room.num_host_blocks > 0;
        config.block_size = room.block_size;
        config.max_num_seqs = room.max_rows;
        config.max_num_batched_tokens = room.max_tokens;
        config.max_model_len = room.max_model_len;
        config.max_waiting = room.max_rows;
        return config;
    }

    void work() {
        try {
            while (run_step()) {
            }
        } catch (...) {
            failure_ = std::current_exception();
            fail_all();
        }
    }

    /// False when all is done and nothing more will come.
    bool run_step() {
        const inflight::step step = scheduler_.schedule(now());
        inflight::step_guard guard(scheduler_, step);
        const inflight::tokens_view sampled = model_.run(step);
        // The rows are the scheduler's until the commit, and asked for after it.
        sampling_.clear();
        for (const inflight_row& row : step.rows()) {
            if (inflight::samples(row)) {
                sampling_.push_back(row.request_id);
            }
        }
        const bool idle = step.empty();
        const inflight::outputs_view outputs = scheduler_.commit(step, sampled);
        guard.done();
        deliver(outputs);
        tell_endings();
        return !idle || wait_for_work();
    }

    /// Outputs are in the order of the rows, without those that were cancelled meanwhile.
    void deliver(const inflight::outputs_view& outputs) {
        std::size_t row = 0;
        for (const inflight_output& output : outputs.outputs()) {
            while (sampling_.at(row) != output.request_id) {
                row++;
            }
            const stream* to = find(output.request_id);
            for (const token id : outputs.tokens_of(output)) {
                if (to != nullptr) {
                    to->got(id, model_.logits(row));
                }
            }
        }
    }

    void tell_endings() {
        std::array<inflight_event, 16> room;
        inflight::span<const inflight_event> events;
        do {
            events = scheduler_.events(room);
            for (const inflight_event& event : events) {
                switch (inflight::kind_of(event)) {
                    case inflight::event_kind::finished:
                        end(event.request_id, {ending::finished, inflight::finish_of(event)});
                        break;
                    case inflight::event_kind::cancelled:
                        end(event.request_id, {ending::cancelled});
                        break;
                    case inflight::event_kind::refused:
                        end(event.request_id,
                            {ending::refused, inflight::finish::none, inflight::status_of(event)});
                        break;
                    case inflight::event_kind::preempted:
                        break;  // It goes on later: its reader only sees that it takes longer.
                }
            }
        } while (events.size() == room.size());
    }

    /// Streams stay where they are until their end, which only this thread makes.
    const stream* find(std::uint64_t id) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto at = streams_.find(id);
        return at == streams_.end() ? nullptr : &at->second;
    }

    void end(std::uint64_t id, const ending& how) {
        stream to;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            const auto at = streams_.find(id);
            if (at == streams_.end()) {
                return;
            }
            to = std::move(at->second);
            streams_.erase(at);
        }
        to.ended(how);
    }

    void fail_all() {
        std::unordered_map<std::uint64_t, stream> left;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            left.swap(streams_);
        }
        for (const auto& [id, to] : left) {
            to.ended({ending::failed});
        }
    }

    /// Sleeps until something is handed over, or was since the last step began. False at the end.
    bool wait_for_work() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (stopping_ && streams_.empty()) {
                return false;
            }
        }
        bell_.wait();
        return true;
    }

    static std::uint64_t now() {
        const auto since = std::chrono::steady_clock::now().time_since_epoch();
        return static_cast<std::uint64_t>(
            std::chrono::duration_cast<std::chrono::nanoseconds>(since).count());
    }

    paged_model model_;
    doorbell bell_;
    inflight::scheduler scheduler_;
    const inflight::submitter submitter_;
    std::vector<std::uint64_t> sampling_;
    std::exception_ptr failure_;
    std::thread worker_;

    std::mutex mutex_;
    std::unordered_map<std::uint64_t, stream> streams_;
    std::uint64_t next_id_ = 0;
    bool stopping_ = false;
};

}  // namespace serve

#endif
