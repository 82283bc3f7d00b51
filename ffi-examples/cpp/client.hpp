// A client: sends its requests, a few at once, and reads their tokens; some it leaves early.
#ifndef SERVE_CLIENT_HPP
#define SERVE_CLIENT_HPP

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <inflight.hpp>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "model.hpp"

namespace serve {

/// A request of a client's, and what came of it.
struct job {
    std::vector<token> prompt;
    std::uint32_t max_tokens = 0;
    /// Tokens after which the client leaves; 0 for a client that stays.
    std::uint32_t leave_after = 0;

    std::uint64_t id = 0;
    bool left = false;
    /// The queue was full when the engine came to it.
    bool again = false;
    bool has_ended = false;
    ending end{};
    std::vector<token> tokens;
    /// What each token was sampled from, one after the other.
    std::vector<float> logits;
};

/// Keeps a few requests going at once, until all of its jobs are done.
class client {
   public:
    explicit client(std::vector<job> jobs) : jobs_(std::move(jobs)) {}

    void run(engine& engine) {
        std::size_t next = 0;
        for (; next < std::min(window, jobs_.size()); next++) {
            send(engine, jobs_[next]);
        }
        std::unique_lock<std::mutex> lock(mutex_);
        for (std::size_t done = 0; done < jobs_.size();) {
            changed_.wait(lock, [&] { return news_; });
            news_ = false;
            std::vector<std::uint64_t> leaving;
            std::vector<job*> sending;
            std::size_t ended = 0;
            for (job& each : jobs_) {
                ended += each.has_ended;
                if (each.again) {
                    each.again = false;
                    retries_++;
                    sending.push_back(&each);
                }
                const bool enough = each.leave_after > 0 && each.tokens.size() >= each.leave_after;
                if (enough && !each.left && !each.has_ended) {
                    each.left = true;
                    leaving.push_back(each.id);
                }
            }
            for (; done < ended; done++) {
                if (next < jobs_.size()) {
                    sending.push_back(&jobs_[next++]);
                }
            }
            // The engine's thread must not wait for this one.
            lock.unlock();
            for (const std::uint64_t id : leaving) {
                engine.cancel(id);
            }
            for (job* each : sending) {
                send(engine, *each);
            }
            lock.lock();
        }
    }

    /// How often the queue was full.
    std::uint64_t retries() const { return retries_; }
    const std::vector<job>& jobs() const { return jobs_; }

   private:
    static constexpr std::size_t window = 5;

    void send(engine& engine, job& of) {
        for (;;) {
            // Its number is there before its first token is told.
            std::unique_lock<std::mutex> lock(mutex_);
            const auto sent = engine.submit(of.prompt, of.max_tokens, stream_to(of));
            if (sent) {
                of.id = *sent;
                return;
            }
            lock.unlock();
            if (sent.why().group() != inflight::status_group::capacity) {
                throw inflight::error(sent.why());
            }
            retries_++;
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
    }

    stream stream_to(job& of) {
        return {
            [this, &of](token id, inflight::span<const float> logits) {
                {
                    const std::lock_guard<std::mutex> lock(mutex_);
                    of.tokens.push_back(id);
                    of.logits.insert(of.logits.end(), logits.begin(), logits.end());
                    news_ = true;
                }
                changed_.notify_one();
            },
            [this, &of](const ending& how) {
                {
                    const std::lock_guard<std::mutex> lock(mutex_);
                    // A submitter takes what the scheduler may refuse a moment later, when those
                    // that had to give way are in the queue again.
                    of.again = how.how == ending::refused &&
                               inflight::group_of(how.code) == inflight::status_group::capacity;
                    of.has_ended = !of.again;
                    of.end = how;
                    news_ = true;
                }
                changed_.notify_one();
            },
        };
    }

    std::vector<job> jobs_;
    std::uint64_t retries_ = 0;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool news_ = false;
};

}  // namespace serve

#endif
