// Stands in for CUDA's header: float16 is converted in device.h's own integer arithmetic, as on a CPU.
#pragma once
