// What the op library shows to the Python module beside it; all else in it is hidden.
#pragma once

#define SENET_EXPORT __attribute__((visibility("default")))
