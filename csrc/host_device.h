// Marks functions that host and device share.
#pragma once

#if defined(__CUDACC__)
#define VIDEOAR_HOST_DEVICE __host__ __device__
#else
#define VIDEOAR_HOST_DEVICE
#endif
