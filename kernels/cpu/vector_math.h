// Elementwise functions over a vector type V: Scalar, Avx2 or Avx512 (simd_*.h). A lane's result
// depends on that lane alone, so tails (LoadFirst, StoreFirst) have the bits of full vectors.
// V::MulAdd is fused where the processor does it. Always inline: a call makes the loop around it
// save every vector.
#pragma once

namespace plumbline {

// e^x, at most 1 ulp off; 0 below about -104, infinity above about 88.7, NaN for NaN.
// Cephes' scheme: x = n ln 2 + r with |r| <= ln(2)/2, a polynomial in r, then times 2^n, rounded once.
template <typename V>
__attribute__((always_inline)) inline typename V::F32 Exp(typename V::F32 x) {
  using F32 = typename V::F32;
  x = V::Max(V::Set(-104.0f), V::Min(V::Set(89.0f), x));  // in this operand order NaN passes
  const F32 n = V::Round(V::Mul(x, V::Set(1.44269504088896341f)));
  F32 r = V::MulAdd(n, V::Set(-0.693359375f), x);
  r = V::MulAdd(n, V::Set(2.12194440e-4f), r);
  F32 p = V::Set(1.9875691500e-4f);
  p = V::MulAdd(p, r, V::Set(1.3981999507e-3f));
  p = V::MulAdd(p, r, V::Set(8.3334519073e-3f));
  p = V::MulAdd(p, r, V::Set(4.1665795894e-2f));
  p = V::MulAdd(p, r, V::Set(1.6666665459e-1f));
  p = V::MulAdd(p, r, V::Set(5.0000001201e-1f));
  p = V::Add(V::MulAdd(V::Mul(r, r), p, r), V::Set(1.0f));
  return V::Scale(p, n);
}

// 1 / (1 + e^-x).
template <typename V>
__attribute__((always_inline)) inline typename V::F32 Sigmoid(typename V::F32 x) {
  const typename V::F32 one = V::Set(1.0f);
  return V::Div(one, V::Add(one, Exp<V>(V::Sub(V::Set(0.0f), x))));
}

// x * sigmoid(x), at most 2.5 ulp off.
template <typename V>
__attribute__((always_inline)) inline typename V::F32 Silu(typename V::F32 x) {
  return V::Div(x, V::Add(V::Set(1.0f), Exp<V>(V::Sub(V::Set(0.0f), x))));
}

}  // namespace plumbline
