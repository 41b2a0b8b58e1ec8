// Constants of the exact arithmetic; mlic_fast/engine/arithmetic.py is the original, and a test
// compares the two.
#pragma once

namespace mlic::exact {

constexpr float kActivationLimit = 4095.0f;
constexpr float kSoftmaxOne = 16383.0f;
constexpr int kWeightLimit = 16383;
constexpr float kSymbolLimit = 4194304.0f;

// Squares are integers of twice so many bits, in two parts.
constexpr int kSquareBits = 11;

constexpr float kGeluClamp = 4.0f;
constexpr float kGelu[] = {
    0x1.983dd6p-2f,  -0x1.0de06ep-4f,  0x1.377922p-7f,  -0x1.07d884p-10f,
    0x1.39f70cp-14f, -0x1.ead9eap-19f, 0x1.bf8424p-24f, -0x1.65b186p-30f,
};

constexpr float kMinusLog2E = -0x1.715476p+0f;
constexpr float kExpClamp = 24.0f;
constexpr float kExp2[] = {
    0x1.ffffa8p-1f, -0x1.62d4cap-1f, 0x1.ea2accp-3f, -0x1.b2c454p-5f, 0x1.bb6fa6p-8f,
};

constexpr float kTanhClamp = 0x1.3e147ap+2f;

// Softmax weights reach 16383 and values 4095: this many of their products always fit int32.
constexpr int kProductsInt32 = 32;
constexpr int kWindow = 5;
constexpr int kTokens = kWindow * kWindow;
constexpr int kExcludedRadius = 2;

}  // namespace mlic::exact
