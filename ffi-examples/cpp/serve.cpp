// A miniature serving stack: clients on threads of their own send prompts to an engine and read
// tokens as they come, some of them leaving early. Then every token is compared with what the same
// model says without the engine.
#include <chrono>
#include <cstdint>
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
#include <vector>

#include "client.hpp"
#include "compare.hpp"
#include "engine.hpp"
#include "model.hpp"
#include "placement.hpp"

namespace {

using serve::token;

struct options {
    std::string device = "auto";
    /// Empty for the device's default.
    std::string dtype;
    std::uint64_t seed = 1;
    std::uint32_t clients = 6;
    std::uint32_t requests = 8;
    /// Small, so that requests give way to each other.
    serve::capacity room;
};

/// Prompts begin with one of three texts, as those of applications do with their instructions.
std::vector<serve::job> draw_jobs(const options& from, std::uint32_t client) {
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
    std::vector<serve::job> jobs(from.requests);
    for (std::size_t i = 0; i < jobs.size(); i++) {
        jobs[i].prompt = instructions[own() % instructions.size()];
        const std::vector<token> question = words(own, own() % 40);
        jobs[i].prompt.insert(jobs[i].prompt.end(), question.begin(), question.end());
        jobs[i].max_tokens = 8 + static_cast<std::uint32_t>(own() % 56);
        jobs[i].leave_after = i % 5 == 4 ? 1 + static_cast<std::uint32_t>(own() % 8) : 0;
    }
    return jobs;
}

/// Ends that requests cannot have had.
bool ended_well(const serve::job& of) {
    switch (of.end.how) {
        case serve::ending::finished:
            return of.end.why == inflight::finish::length && of.tokens.size() == of.max_tokens;
        case serve::ending::cancelled:
            return of.left && of.tokens.size() >= of.leave_after;
        default:
            return false;
    }
}

void complain(const serve::job& of) {
    static const char* const names[] = {"finished", "cancelled", "refused", "failed"};
    std::fprintf(stderr, "request %llu: %s (%s) after %zu of %u tokens\n",
                 static_cast<unsigned long long>(of.id), names[of.end.how],
                 inflight::status_string(of.end.code), of.tokens.size(), of.max_tokens);
}

int serve_all(const options& chosen) {
    const serve::placement on = serve::place(chosen.device, chosen.dtype);
    std::printf("device       %s\n", on.line.c_str());
    std::fflush(stdout);
    const serve::model model(chosen.seed);
    // Longer than the engine, which tells them their tokens.
    std::vector<std::unique_ptr<serve::client>> clients;
    for (std::uint32_t c = 0; c < chosen.clients; c++) {
        clients.push_back(std::make_unique<serve::client>(draw_jobs(chosen, c)));
    }
    serve::engine engine(model, on, chosen.room);

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

    serve::comparison checked(model, on.type);
    std::uint64_t requests = 0, cancelled = 0, ended_badly = 0, retries = 0;
    for (const auto& each : clients) {
        retries += each->retries();
        for (const serve::job& of : each->jobs()) {
            requests++;
            cancelled += of.end.how == serve::ending::cancelled;
            if (!ended_well(of)) {
                ended_badly++;
                complain(of);
            }
            checked.add(of);
        }
    }

    const auto stats = engine.stats();
    const auto& moved = engine.moved();
    const auto number = [](std::uint64_t n) { return static_cast<unsigned long long>(n); };
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
    std::printf("checked      %llu tokens, %llu wrong; of %llu near ties %llu the other way\n",
                number(checked.tokens), number(checked.wrong), number(checked.near_ties),
                number(checked.ties));
    std::printf("logits       differ by %.1e at most, %.1e root mean square\n",
                static_cast<double>(checked.largest), checked.mean());

    bool good = checked.good() && ended_badly == 0;
    if (!checked.good()) {
        std::fprintf(stderr, "tokens or logits are not the model's\n");
    }
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
        } else if (name == "--dtype") {
            chosen.dtype = value;
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
