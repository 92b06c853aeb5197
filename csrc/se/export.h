// What the op library shows to the Python module beside it; the rest of it is compiled as hidden.
#pragma once

#define SENET_EXPORT __attribute__((visibility("default")))
