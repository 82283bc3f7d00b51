// What a thread sleeps on until another one has something for it: an eventfd, which an event loop
// could watch next to its sockets.
#ifndef SERVE_DOORBELL_HPP
#define SERVE_DOORBELL_HPP

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

namespace serve {

class doorbell {
   public:
    doorbell() : file_(eventfd(0, EFD_CLOEXEC)) {
        if (file_ < 0) {
            throw std::system_error(errno, std::generic_category(), "eventfd");
        }
    }
    doorbell(const doorbell&) = delete;
    doorbell& operator=(const doorbell&) = delete;
    ~doorbell() { close(file_); }

    /// Any thread.
    void ring() noexcept {
        const std::uint64_t once = 1;
        // It would wait only where 2^64 - 2 rings have not been heard.
        while (write(file_, &once, sizeof once) < 0 && errno == EINTR) {
        }
    }
    /// The same as a callback of the library.
    static void ring(void* of) noexcept { static_cast<doorbell*>(of)->ring(); }

    /// Returns when it has been rung since the last wait, however often.
    void wait() {
        std::uint64_t rings = 0;
        while (read(file_, &rings, sizeof rings) < 0) {
            if (errno != EINTR) {
                throw std::system_error(errno, std::generic_category(), "eventfd");
            }
        }
    }

   private:
    const int file_;
};

}  // namespace serve

#endif
