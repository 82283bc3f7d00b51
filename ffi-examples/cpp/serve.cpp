// A miniature serving stack: clients on threads of their own send prompts to an engine and read
// tokens as they come, some of them leaving early. Then every token is compared with what the same
// model says without the engine.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <inflight.hpp>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dense.hpp"
#include "engine.hpp"
#include "model.hpp"

namespace {

using serve::token;

struct options {
    std::string device = "cpu";
    std::uint64_t seed = 1;
    std::uint32_t clients = 6;
    std::uint32_t requests = 8;
    /// Small, so that requests give way to each other.
    serve::capacity room;
};

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
    serve::ending end{};
    std::vector<token> tokens;
    /// What each token was sampled from, one after the other.
    std::vector<float> logits;
};

/// Keeps a few requests going at once, until all of its jobs are done.
class client {
   public:
    explicit client(std::vector<job> jobs) : jobs_(std::move(jobs)) {}

    void run(serve::engine& engine) {
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

    void send(serve::engine& engine, job& of) {
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

    serve::stream stream_to(job& of) {
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
            [this, &of](const serve::ending& how) {
                {
                    const std::lock_guard<std::mutex> lock(mutex_);
                    // A submitter takes what the scheduler may refuse a moment later, when those
                    // that had to give way are in the queue again.
                    of.again = how.how == serve::ending::refused &&
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

/// Prompts begin with one of three texts, as those of applications do with their instructions.
std::vector<job> draw_jobs(const options& from, std::uint32_t client) {
    const auto words = [](std::mt19937_64& random, std::size_t count) {
        std::vector<token> drawn(count);
        for (token& each : drawn) {
            each = static_cast<token>(random() % serve::shape::vocabulary);
        }
        return drawn;
    };
    std::mt19937_64 shared(from.seed);
    std::vector<std::vector<token>> instructions;
    for (const std::size_t length : {24, 40, 56}) {
        instructions.push_back(words(shared, length));
    }
    std::mt19937_64 own(from.seed * 1000003 + client);
    std::vector<job> jobs(from.requests);
    for (std::size_t i = 0; i < jobs.size(); i++) {
        jobs[i].prompt = instructions[own() % instructions.size()];
        const std::vector<token> question = words(own, own() % 40);
        jobs[i].prompt.insert(jobs[i].prompt.end(), question.begin(), question.end());
        jobs[i].max_tokens = 8 + static_cast<std::uint32_t>(own() % 56);
        jobs[i].leave_after = i % 5 == 4 ? 1 + static_cast<std::uint32_t>(own() % 8) : 0;
    }
    return jobs;
}

struct comparison {
    std::uint64_t tokens = 0, wrong = 0, ties = 0;
    float largest = 0;
};

/// Logits of size 1 are sums of some hundred products, in another order there and here.
constexpr float tolerance = 1e-3f;

/// What the model says of a job's tokens when it sees that job alone.
void compare(const serve::model& model, const job& of, comparison& so_far) {
    if (of.tokens.empty()) {
        return;
    }
    std::vector<token> sequence = of.prompt;
    sequence.insert(sequence.end(), of.tokens.begin(), of.tokens.end() - 1);
    const std::vector<float> expected = serve::dense_logits(model, sequence, of.prompt.size() - 1);
    for (std::size_t i = 0; i < of.tokens.size(); i++) {
        const float* row = &expected[i * serve::shape::vocabulary];
        const float* got = &of.logits[i * serve::shape::vocabulary];
        bool close = true;
        for (token id = 0; id < serve::shape::vocabulary; id++) {
            const float difference = std::fabs(row[id] - got[id]);
            // A NaN is in no order.
            close = close && difference <= tolerance;
            so_far.largest = std::max(so_far.largest, difference);
        }
        // Where two logits are as close as rounding may bring them, either token is right.
        const token best = serve::model::largest(row);
        const bool tie = of.tokens[i] != best && row[best] - row[of.tokens[i]] <= 2 * tolerance;
        so_far.tokens++;
        so_far.ties += tie;
        so_far.wrong += !close || (of.tokens[i] != best && !tie);
    }
}

/// Ends that requests cannot have had.
bool ended_well(const job& of) {
    switch (of.end.how) {
        case serve::ending::finished:
            return of.end.why == inflight::finish::length && of.tokens.size() == of.max_tokens;
        case serve::ending::cancelled:
            return of.left && of.tokens.size() >= of.leave_after;
        default:
            return false;
    }
}

void complain(const job& of) {
    static const char* const names[] = {"finished", "cancelled", "refused", "failed"};
    std::fprintf(stderr, "request %llu: %s (%s) after %zu of %u tokens\n",
                 static_cast<unsigned long long>(of.id), names[of.end.how],
                 inflight::status_string(of.end.code), of.tokens.size(), of.max_tokens);
}

inflight::device open_device(const std::string& name) {
    if (name == "cpu") {
        return inflight::device::cpu();
    }
    throw std::invalid_argument("--device: only cpu; this model computes in the process's memory");
}

int serve_all(const options& chosen) {
    const inflight::device device = open_device(chosen.device);
    const serve::model model(chosen.seed);
    // Longer than the engine, which tells them their tokens.
    std::vector<std::unique_ptr<client>> clients;
    for (std::uint32_t c = 0; c < chosen.clients; c++) {
        clients.push_back(std::make_unique<client>(draw_jobs(chosen, c)));
    }
    serve::engine engine(model, device, chosen.room);

    const auto from = std::chrono::steady_clock::now();
    engine.start();
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::exception_ptr failure;
    for (const auto& each : clients) {
        threads.emplace_back([&, at = each.get()] {
            try {
                at->run(engine);
            } catch (...) {
                const std::lock_guard<std::mutex> lock(mutex);
                failure = std::current_exception();
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    engine.stop();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - from;
    engine.verify();
    if (failure) {
        std::rethrow_exception(failure);
    }

    comparison checked;
    std::uint64_t requests = 0, cancelled = 0, ended_badly = 0, retries = 0;
    for (const auto& each : clients) {
        retries += each->retries();
        for (const job& of : each->jobs()) {
            requests++;
            cancelled += of.end.how == serve::ending::cancelled;
            if (!ended_well(of)) {
                ended_badly++;
                complain(of);
            }
            compare(model, of, checked);
        }
    }

    const auto stats = engine.stats();
    const auto& moved = engine.moved();
    const auto number = [](std::uint64_t n) { return static_cast<unsigned long long>(n); };
    const auto info = device.info();
    std::printf("device       %s, %u threads\n", info.name, info.threads);
    std::printf("requests     %llu, %llu of them cancelled; %llu times the queue was full\n",
                number(requests), number(cancelled), number(retries));
    std::printf("tokens       %llu in %.2f s and %llu steps: %.0f a second\n",
                number(stats.output_tokens), took.count(), number(stats.steps),
                static_cast<double>(stats.output_tokens) / took.count());
    std::printf("preemptions  %llu; blocks swapped out %llu, in %llu, copied %llu\n",
                number(stats.preemptions), number(moved.swapped_out), number(moved.swapped_in),
                number(moved.copied));
    std::printf("prefixes     %llu of %llu prompt tokens were cached\n",
                number(stats.prefix_hit_tokens), number(stats.prefix_queried_tokens));
    std::printf("checked      %llu tokens, %llu wrong, %llu ties; logits differ by %.1e at most\n",
                number(checked.tokens), number(checked.wrong), number(checked.ties),
                static_cast<double>(checked.largest));

    bool good = checked.wrong == 0 && ended_badly == 0;
    if (ended_badly > 0) {
        std::fprintf(stderr, "%llu requests ended as they should not\n", number(ended_badly));
    }
    if (stats.num_running + stats.num_waiting > 0 ||
        stats.num_free_blocks != chosen.room.num_blocks - 1) {
        std::fprintf(stderr, "something still holds blocks\n");
        good = false;
    }
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}

options parse(int argc, char** argv) {
    options chosen;
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc) {
            throw std::invalid_argument(name + ": no value");
        }
        const std::string value = argv[i + 1];
        const auto number = [&] { return static_cast<std::uint32_t>(std::stoul(value)); };
        if (name == "--device") {
            chosen.device = value;
        } else if (name == "--seed") {
            chosen.seed = number();
        } else if (name == "--clients") {
            chosen.clients = number();
        } else if (name == "--requests") {
            chosen.requests = number();
        } else if (name == "--blocks") {
            chosen.room.num_blocks = number();
        } else if (name == "--host-blocks") {
            chosen.room.num_host_blocks = number();
        } else {
            throw std::invalid_argument(name + ": not an option; see README.md");
        }
    }
    return chosen;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return serve_all(parse(argc, argv));
    } catch (const std::invalid_argument& error) {
        std::fprintf(stderr, "serve: %s\n", error.what());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "serve: %s\n", error.what());
        return EXIT_FAILURE;
    }
}
