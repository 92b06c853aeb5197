#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "se/cpu/kernels.h"

namespace senet {
namespace {

std::vector<Isa>& registered() {
  static std::vector<Isa> list;
  return list;
}

const Kernels& find(const std::string& name, const char* argument) {
  std::string known;
  for (const std::string& isa : isas()) {
    if (isa == name) {
      const auto found = std::find_if(registered().begin(), registered().end(), [&](const Isa& i) { return name == i.name; });
      return *found->kernels;
    }
    known += (known.empty() ? "" : ", ") + isa;
  }
  throw std::invalid_argument(std::string(argument) + " is '" + name + "'; expected one of " + known);
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

RegisterIsa::RegisterIsa(const Isa& isa) { registered().push_back(isa); }

std::vector<std::string> isas() {
  std::vector<Isa> list;
  for (const Isa& isa : registered()) {
    if (isa.supported()) list.push_back(isa);
  }
  std::sort(list.begin(), list.end(), [](const Isa& a, const Isa& b) { return a.rank < b.rank; });
  std::vector<std::string> names;
  for (const Isa& isa : list) names.emplace_back(isa.name);
  return names;
}

const Kernels& kernels() {
  const Kernels* current = chosen.load(std::memory_order_acquire);
  if (current == nullptr) {
    const char* forced = std::getenv("SENET_FAST_ISA");
    current = forced && *forced ? &find(forced, "SENET_FAST_ISA") : &find(isas().back(), "isa");
    chosen.store(current, std::memory_order_release);
  }
  return *current;
}

void select_isa(const std::string& name) { chosen.store(&find(name, "name"), std::memory_order_release); }

}  // namespace senet
