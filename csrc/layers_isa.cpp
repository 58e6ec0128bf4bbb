// The layers' kernels for one instruction set: CMakeLists.txt compiles this file once for each. Everything but the
// table is in unnamed namespaces: the linker must not take one instruction set's function for another's.
#include "attention.h"
#include "convolution.h"

namespace sctrt {

#define SCTRT_TEXT_(name) #name
#define SCTRT_TEXT(name) SCTRT_TEXT_(name)

extern const LayerKernels SCTRT_LAYERS_TABLE;
const LayerKernels SCTRT_LAYERS_TABLE{SCTRT_TEXT(SCTRT_LAYERS_NAME),
                                      kHasPairs,
                                      winograd_scratch,
                                      winograd,
                                      direct_scratch,
                                      direct,
                                      attention_scratch,
                                      pack_keys,
                                      attention};

}  // namespace sctrt
