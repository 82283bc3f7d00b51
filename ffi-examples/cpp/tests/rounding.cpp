// Rounding to f16 and bf16: every number of a type, those halfway between neighbours, and theirs.
#include "../rounding.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace {

int checked = 0;

void expect(float number, std::uint16_t got, std::uint16_t expected) {
    checked++;
    if (got != expected) {
        std::fprintf(stderr, "%a is %04x, not %04x\n", static_cast<double>(number), got, expected);
        std::exit(EXIT_FAILURE);
    }
}

/// `bits` is the first infinity; those below are in the order of their numbers.
template <class To, class From>
void check(To to, From from, std::uint16_t infinity, double last_step) {
    for (std::uint16_t bits = 0; bits < infinity; bits++) {
        const auto next = static_cast<std::uint16_t>(bits + 1),
                   even = static_cast<std::uint16_t>(bits + (bits & 1));
        const float number = from(bits);
        // In place of infinity the number that would be there.
        const double above = next == infinity ? double{number} + last_step : double{from(next)};
        const auto middle = static_cast<float>((double{number} + above) / 2);
        for (const std::uint16_t sign : {0, 0x8000}) {
            const auto with = [sign](std::uint16_t of) {
                return static_cast<std::uint16_t>(of | sign);
            };
            const float one = sign == 0 ? 1.0f : -1.0f;
            expect(number, to(one * number), with(bits));
            expect(middle, to(one * middle), with(even));
            expect(middle, to(one * std::nextafter(middle, 0.0f)), with(bits));
            expect(middle, to(one * std::nextafter(middle, INFINITY)), with(next));
        }
    }
    expect(INFINITY, to(INFINITY), infinity);
    if (!std::isnan(from(to(NAN)))) {
        std::fprintf(stderr, "a NaN is a number\n");
        std::exit(EXIT_FAILURE);
    }
}

}  // namespace

int main() {
    using namespace serve;
    check(to_f16, from_f16, 0x7c00, 32.0);
    check(to_bf16, from_bf16, 0x7f80, 0x1p120);
    // Numbers that are known: the checks above say only that both directions agree.
    for (int exponent = -24; exponent <= 15; exponent++) {
        const auto bits = static_cast<std::uint16_t>(exponent < -14 ? 1 << (exponent + 24)
                                                                    : (exponent + 15) << 10);
        expect(std::ldexp(1.0f, exponent), to_f16(std::ldexp(1.0f, exponent)), bits);
    }
    expect(65504.0f, to_f16(65504.0f), 0x7bff);
    expect(1.5f, to_f16(1.5f), 0x3e00);
    expect(1.5f, to_bf16(1.5f), 0x3fc0);
    std::printf("rounding: %d numbers\n", checked);
}
