// Counting, number formats and guarded memory for the C++ tests: plain programs without a framework.
#pragma once
#include <algorithm>
#include <array>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <numbers>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "se/cpu/drive.h"

namespace {

using namespace senet;
using std::int64_t;
using Doubles = std::vector<double>;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

// ---- counting ----

int passed = 0, failed = 0;

template <class... Arguments>
void check(bool good, const char* format, Arguments... arguments) {
  ++(good ? passed : failed);
  if (good || failed > 40) return;
  std::printf("  FAILED ");
  std::printf(format, arguments...);
  std::printf("\n");
}

void group(const char* name, void (*body)()) {
  const int passed_before = passed, failed_before = failed;
  body();
  std::printf("%-20s %7d passed, %d failed\n", name, passed - passed_before, failed - failed_before);
}

template <class Body>
void for_isas(const Body& body) {
  for (const std::string& name : isas()) {
    select_isa(name);
    body(kernels());
  }
}

// ---- threads ----

const auto run_team = [](int64_t threads, const auto& body) {
  if (threads == 1) return body(Member{});
  std::barrier<> barrier(threads);
  std::vector<std::thread> team;
  for (int64_t rank = 0; rank < threads; ++rank) {
    const auto wait = [](void* barrier) { static_cast<std::barrier<>*>(barrier)->arrive_and_wait(); };
    team.emplace_back([&body, member = Member{rank, threads, wait, &barrier}] { body(member); });
  }
  for (std::thread& thread : team) thread.join();
};

// ---- number formats ----

struct Format {
  int mantissa, exponent;  // bits
  int bias() const { return (1 << (exponent - 1)) - 1; }
  unsigned infinity() const { return ((1u << exponent) - 1) << mantissa; }
};
Format format(Dtype dtype) {
  constexpr Format formats[] = {{23, 8}, {52, 11}, {7, 8}, {10, 5}};  // in the order of Dtype
  return formats[int(dtype)];
}

double decode(unsigned bits, Format f) {
  const unsigned magnitude = bits & ((1u << (f.mantissa + f.exponent)) - 1), mantissa = bits & ((1u << f.mantissa) - 1);
  const int exponent = int(magnitude >> f.mantissa);
  double value = std::ldexp(mantissa + (exponent ? 1u << f.mantissa : 0), std::max(exponent, 1) - f.bias() - f.mantissa);
  if (magnitude >= f.infinity()) value = mantissa ? kNaN : kInf;
  return bits == magnitude ? value : -value;
}

unsigned encode(double value, Format f) {  // to nearest, ties to even
  const unsigned sign = unsigned(std::signbit(value)) << (f.mantissa + f.exponent);
  if (std::isnan(value)) return f.infinity() | 1u << (f.mantissa - 1);
  if (value == 0) return sign;
  const int exponent = std::isinf(value) ? f.bias() + 1 : std::max(std::ilogb(value), 1 - f.bias());
  if (exponent > f.bias()) return sign | f.infinity();
  const double units = std::nearbyint(std::ldexp(std::abs(value), f.mantissa - exponent));  // of the last bit; may carry
  return sign | (unsigned(units) + (unsigned(exponent + f.bias() - 1) << f.mantissa));
}

void put(double value, Dtype dtype, char* to) {
  if (dtype == Dtype::f64) return void(std::memcpy(to, &value, 8));
  const unsigned bits = encode(value, format(dtype));
  std::memcpy(to, &bits, std::size_t(item_bytes(dtype)));  // little-endian
}
double get(const char* from, Dtype dtype) {
  double value;
  if (dtype == Dtype::f64) return std::memcpy(&value, from, 8), value;
  unsigned bits = 0;
  return std::memcpy(&bits, from, std::size_t(item_bytes(dtype))), decode(bits, format(dtype));
}

// ---- memory ----

// `offset` elements behind a boundary of 16 bytes: with 1, aligned to an element and no more. It ends where the allocation
// ends, so that ASan sees the first byte read behind it.
struct Input {
  std::unique_ptr<char[]> bytes;
  char* data;

  Input(const Doubles& values, Dtype dtype, int offset = 1)
      : bytes(new char[(values.size() + std::size_t(offset)) * std::size_t(item_bytes(dtype))]) {
    data = bytes.get() + offset * item_bytes(dtype);
    for (std::size_t i = 0; i < values.size(); ++i) put(values[i], dtype, data + i * std::size_t(item_bytes(dtype)));
  }
};

// NaNs between two guards, `offset` elements behind a boundary of 16 bytes.
struct Output {
  static constexpr std::size_t kGuard = 64;
  Dtype dtype;
  std::size_t front;  // the first guard
  std::vector<char> bytes;

  Output(std::size_t n, Dtype type, int offset = 0)
      : dtype(type),
        front(kGuard + std::size_t(offset * item_bytes(type))),
        bytes(front + n * std::size_t(item_bytes(type)) + kGuard, kGuardByte) {
    std::fill(bytes.begin() + std::ptrdiff_t(front), bytes.end() - kGuard, kPoison);
  }
  char* data() { return bytes.data() + front; }
  bool guarded() const { return only(kGuardByte, bytes.begin(), begin()) && only(kGuardByte, end(), bytes.end()); }
  bool untouched() const { return only(kPoison, begin(), end()); }
  Doubles values() const {
    Doubles all;
    for (std::size_t at = front; at < bytes.size() - kGuard; at += std::size_t(item_bytes(dtype))) {
      all.push_back(get(&bytes[at], dtype));
    }
    return all;
  }

 private:
  using Iterator = std::vector<char>::const_iterator;
  Iterator begin() const { return bytes.begin() + std::ptrdiff_t(front); }
  Iterator end() const { return bytes.end() - kGuard; }
  static constexpr char kGuardByte = '\xA5', kPoison = '\xFF';  // all ones: a NaN in every format
  static bool only(char byte, Iterator from, Iterator to) { return std::count(from, to, byte) == to - from; }
};

}  // namespace
