// Runs an AOTInductor package whose network uses senet_fast's op, in a process without Python.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/serialize.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Registers the ops, for as long as the process runs. A program can be linked to the library as well (CMakeLists.txt).
void load_ops(const std::string& library) {
  if (dlopen(library.c_str(), RTLD_NOW) == nullptr)
    throw std::runtime_error("cannot load the op library: " + std::string(dlerror()) +
                             "; expected what `python -m senet_fast info --library` prints");
  if (!c10::Dispatcher::singleton().findSchema({"senet_fast::squeeze_excite", ""}))
    throw std::runtime_error("the library '" + library +
                             "' has no senet_fast op; expected what `python -m senet_fast info "
                             "--library` prints");
}

std::ifstream opened(const std::string& path, const char* what) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + what + " " + path + "; export.py writes one");
  return file;
}

// A tensor that torch.save wrote.
at::Tensor read_tensor(const std::string& path) {
  std::ifstream file = opened(path, "the input");
  return torch::pickle_load({std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()}).toTensor();
}

void print_rows(const at::Tensor& output) {
  const at::Tensor rows = output.to(at::kFloat).flatten(1).contiguous();
  const float* value = rows.const_data_ptr<float>();
  for (std::int64_t row = 0; row < rows.size(0); ++row) {
    for (std::int64_t column = 0; column < rows.size(1); ++column) std::cout << (column ? " " : "") << *value++;
    std::cout << '\n';
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 4) {
    std::cerr << "usage: serve LIBRARY PACKAGE INPUT\n"
                 "LIBRARY is what `python -m senet_fast info --library` prints; export.py writes PACKAGE and INPUT\n";
    return 2;
  }
  const std::string library = words[1], package = words[2], input = words[3];
  // Sizes, types and layout must be those of the export. Without this torch does not check them, and reads what is not there.
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", /*overwrite=*/0);
  try {
    load_ops(library);
    opened(package, "the package");
    const c10::InferenceMode inference;
    torch::inductor::AOTIModelPackageLoader loader(package);
    std::cout.precision(9);
    for (const at::Tensor& output : loader.run({read_tensor(input).contiguous()})) print_rows(output);
    return 0;
  } catch (const c10::Error& error) {
    std::cerr << "error: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    const std::string text = error.what();  // torch's carry a backtrace behind the first lines
    std::cerr << "error: " << text.substr(0, text.find("Exception raised from")) << '\n';
  }
  return 1;
}
