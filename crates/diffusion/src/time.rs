//! The three coordinates of diffusion time, the shift, and the coefficients that wrap a raw network.
//!
//! All in f64. With c = cos t, s = sin t: σ = s/c = tan t and τ = s/(c + s) = σ/(1 + σ) (rCM, Eq. 3: coordinates with
//! equal signal-to-noise ratio name the same point of the diffusion).

use std::f64::consts::FRAC_PI_2;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// TrigFlow time t ∈ [0, π/2]: x_t = cos t·x_0 + sin t·ε. 0 is clean, π/2 pure noise.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct TrigTime(f64);

/// Noise level σ = tan t ∈ [0, ∞] of x_0 + σ·ε (data of unit standard deviation). ∞ is pure noise.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Sigma(f64);

/// Rectified-flow time τ = sin t/(sin t + cos t) ∈ [0, 1] of (1−τ)·x_0 + τ·ε. 1 is pure noise.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct RfTime(f64);

/// The factor k > 0 of the time shift τ = k·u/(1 + (k−1)·u); k > 1 spends more steps on high noise.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Shift(f64);

/// Gives a newtype its number, and its checked conversion from one.
macro_rules! number {
    ($name:ident) => {
        impl $name {
            /// The number.
            pub fn get(self) -> f64 {
                self.0
            }
        }
        impl TryFrom<f64> for $name {
            type Error = Error;
            fn try_from(x: f64) -> Result<Self> {
                Self::new(x)
            }
        }
        impl From<$name> for f64 {
            fn from(x: $name) -> f64 {
                x.0
            }
        }
    };
}
number!(TrigTime);
number!(Sigma);
number!(RfTime);
number!(Shift);

fn within(ok: bool, quantity: &'static str, range: &'static str, got: f64, remedy: &'static str) -> Result<f64> {
    if ok { Ok(got) } else { Err(Error::OutOfRange { quantity, range, got, remedy }) }
}

impl TrigTime {
    /// No noise, t = 0.
    pub const CLEAN: TrigTime = TrigTime(0.0);
    /// Nothing but noise, t = π/2.
    pub const NOISE: TrigTime = TrigTime(FRAC_PI_2);
    /// π/2 rounded to f32, 4.4e-8 beyond π/2: accepted, since times that passed through f32 take this value.
    pub const NOISE_F32: TrigTime = TrigTime(std::f32::consts::FRAC_PI_2 as f64);

    /// A time in radians.
    ///
    /// # Errors
    /// If t is NaN or outside [0, π/2]; π/2 rounded to f32 is let pass.
    pub fn new(t: f64) -> Result<Self> {
        let remedy = "TrigFlow times are angles in radians; convert a σ by TrigTime::from(Sigma)";
        within((0.0..=Self::NOISE_F32.0).contains(&t), "TrigFlow time t", "[0, π/2]", t, remedy).map(TrigTime)
    }

    /// (sin t, cos t).
    pub fn sin_cos(self) -> (f64, f64) {
        self.0.sin_cos()
    }

    /// The earlier, less noisy, of two times.
    pub fn min(self, other: TrigTime) -> TrigTime {
        TrigTime(self.0.min(other.0))
    }
}

impl Sigma {
    /// A noise level.
    ///
    /// # Errors
    /// If σ is NaN or negative.
    pub fn new(sigma: f64) -> Result<Self> {
        let remedy = "σ is noise over signal; published models start at 80 to 5000";
        within(sigma >= 0.0, "noise level σ", "[0, ∞]", sigma, remedy).map(Sigma)
    }

    /// The level as the start of a grid: positive and finite.
    pub(crate) fn start(self) -> Result<Self> {
        let remedy = "a sampler starts from a positive, finite σ such as 80";
        within(self.0 > 0.0 && self.0.is_finite(), "σ_max", "(0, ∞)", self.0, remedy).map(Sigma)
    }
}

impl RfTime {
    /// A rectified-flow time.
    ///
    /// # Errors
    /// If τ is NaN or outside [0, 1].
    pub fn new(tau: f64) -> Result<Self> {
        let remedy = "divide a network's timestep by its factor (1000 in Wan) first";
        within((0.0..=1.0).contains(&tau), "rectified-flow time τ", "[0, 1]", tau, remedy).map(RfTime)
    }
}

impl From<TrigTime> for Sigma {
    fn from(t: TrigTime) -> Sigma {
        // tan of the double next to π/2 is 1.6e16; the end of the interval means pure noise.
        Sigma(if t.0 >= FRAC_PI_2 { f64::INFINITY } else { t.0.tan() })
    }
}

impl From<Sigma> for TrigTime {
    fn from(sigma: Sigma) -> TrigTime {
        TrigTime(sigma.0.atan())
    }
}

impl From<TrigTime> for RfTime {
    fn from(t: TrigTime) -> RfTime {
        let (s, c) = t.sin_cos();
        RfTime((s / (c + s)).min(1.0))
    }
}

impl From<RfTime> for TrigTime {
    fn from(tau: RfTime) -> TrigTime {
        // Differs from the reference: atan2 needs no clamp of τ below 1.
        TrigTime(tau.0.atan2(1.0 - tau.0))
    }
}

impl From<Sigma> for RfTime {
    fn from(sigma: Sigma) -> RfTime {
        RfTime(if sigma.0.is_infinite() { 1.0 } else { sigma.0 / (1.0 + sigma.0) })
    }
}

impl From<RfTime> for Sigma {
    fn from(tau: RfTime) -> Sigma {
        Sigma(tau.0 / (1.0 - tau.0))
    }
}

impl Shift {
    /// No shift, k = 1.
    pub const NONE: Shift = Shift(1.0);

    /// The factor k.
    ///
    /// # Errors
    /// If k is NaN, infinite or not positive.
    pub fn new(k: f64) -> Result<Self> {
        let remedy = "1 means no shift; Wan uses 3 to 8";
        within(k > 0.0 && k.is_finite(), "time shift", "(0, ∞)", k, remedy).map(Shift)
    }

    /// τ = k·u/(1 + (k−1)·u), which multiplies σ by k.
    pub fn apply(self, u: RfTime) -> RfTime {
        let (k, u) = (self.0, u.0);
        // Rounding may leave the interval by an ulp where k < 1.
        RfTime((k * u / (1.0 + (k - 1.0) * u)).min(1.0))
    }

    /// u = τ/(k − (k−1)·τ), the inverse of [`apply`](Self::apply).
    pub fn invert(self, tau: RfTime) -> RfTime {
        let (k, tau) = (self.0, tau.0);
        RfTime((tau / (k - (k - 1.0) * tau)).min(1.0))
    }
}

/// How a raw network's input, time and output relate to TrigFlow's.
///
/// Both wrap a rectified-flow network, which predicts ε − x_0: with k = cos t + sin t,
/// net = network(c_in·x_t, c_noise), x_0 = c_skip·x_t + c_out·net, F = (cos t·x_t − x_0)/sin t (rCM, Eq. 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrapper {
    /// A network that takes c_noise = τ (Cosmos-Predict2).
    Rf,
    /// A network that takes c_noise = 1000·τ (Wan).
    Rf1000,
}

/// The coefficients of a [`Wrapper`] at one time, or their derivatives by t.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// Weight of x_t in x_0: 1/k.
    pub c_skip: f64,
    /// Weight of the network's output in x_0: −sin t/k.
    pub c_out: f64,
    /// Factor of x_t on its way into the network: 1/k.
    pub c_in: f64,
    /// The time the network is given: τ or 1000·τ.
    pub c_noise: f64,
}

/// F as a combination of x_t and the network's output, or the derivatives of its weights by t.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VelocityCoefficients {
    /// Weight of x_t: (cos t − sin t)/k.
    pub on_x_t: f64,
    /// Weight of the network's output: 1/k.
    pub on_net: f64,
}

impl Wrapper {
    /// The factor between τ and c_noise.
    pub fn time_factor(self) -> f64 {
        match self {
            Wrapper::Rf => 1.0,
            Wrapper::Rf1000 => 1000.0,
        }
    }

    /// c_skip, c_out, c_in, c_noise at t.
    pub fn coefficients(self, t: TrigTime) -> Coefficients {
        let (s, c) = t.sin_cos();
        let k = c + s;
        Coefficients { c_skip: 1.0 / k, c_out: -s / k, c_in: 1.0 / k, c_noise: self.time_factor() * s / k }
    }

    /// d/dt of c_skip, c_out, c_in, c_noise: (s−c)/k², −1/k², (s−c)/k², factor/k².
    pub fn derivatives(self, t: TrigTime) -> Coefficients {
        let (s, c) = t.sin_cos();
        let k2 = (c + s) * (c + s);
        let d_inverse = (s - c) / k2;
        Coefficients { c_skip: d_inverse, c_out: -1.0 / k2, c_in: d_inverse, c_noise: self.time_factor() / k2 }
    }

    /// F = ((c−s)·x_t + net)/k: F of the definition with the 0/0 at t = 0 cancelled.
    pub fn velocity(self, t: TrigTime) -> VelocityCoefficients {
        let (s, c) = t.sin_cos();
        VelocityCoefficients { on_x_t: (c - s) / (c + s), on_net: 1.0 / (c + s) }
    }

    /// d/dt of the weights of [`velocity`](Self::velocity): −2/k² and (s−c)/k².
    pub fn velocity_derivatives(self, t: TrigTime) -> VelocityCoefficients {
        let (s, c) = t.sin_cos();
        let k2 = (c + s) * (c + s);
        VelocityCoefficients { on_x_t: -2.0 / k2, on_net: (s - c) / k2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> impl Iterator<Item = TrigTime> {
        (0..=64).map(|i| TrigTime::new(FRAC_PI_2 * i as f64 / 64.0).unwrap())
    }

    #[test]
    fn every_round_trip_returns_the_time() {
        for t in grid() {
            let by_rf = TrigTime::from(RfTime::from(t));
            let by_sigma = TrigTime::from(Sigma::from(t));
            let both = TrigTime::from(RfTime::from(Sigma::from(t)));
            let back = TrigTime::from(Sigma::from(RfTime::from(t)));
            for u in [by_rf, by_sigma, both, back] {
                assert!((u.get() - t.get()).abs() < 1e-15, "{t:?} became {u:?}");
            }
        }
    }

    #[test]
    fn the_ends_convert_exactly() {
        for (t, sigma, tau) in [(0.0, 0.0, 0.0), (FRAC_PI_2, f64::INFINITY, 1.0)] {
            let (t, sigma, tau) = (TrigTime(t), Sigma(sigma), RfTime(tau));
            assert_eq!((Sigma::from(t), RfTime::from(t)), (sigma, tau));
            assert_eq!((TrigTime::from(sigma), RfTime::from(sigma)), (t, tau));
            assert_eq!((TrigTime::from(tau), Sigma::from(tau)), (t, sigma));
        }
    }

    #[test]
    fn the_shift_multiplies_sigma_and_inverts() {
        for k in [0.1, 1.0, 3.0, 12.0] {
            let shift = Shift::new(k).unwrap();
            for tau in grid().map(RfTime::from) {
                let shifted = shift.apply(tau);
                assert!((shift.invert(shifted).get() - tau.get()).abs() < 1e-14);
                let want = RfTime::from(Sigma::new(k * Sigma::from(tau).get()).unwrap());
                assert!((shifted.get() - want.get()).abs() < 1e-14, "{k} {tau:?}");
            }
            assert_eq!(shift.apply(RfTime(1.0)).get(), 1.0);
            assert_eq!(shift.invert(RfTime(1.0)).get(), 1.0);
        }
    }

    #[test]
    fn derivatives_match_central_differences() {
        let h = 1e-5;
        for w in [Wrapper::Rf, Wrapper::Rf1000] {
            for t in grid().filter(|t| t.get() > h && t.get() < FRAC_PI_2 - h) {
                let (a, b) = (TrigTime(t.get() - h), TrigTime(t.get() + h));
                let slope = |f: &dyn Fn(TrigTime) -> f64| (f(b) - f(a)) / (2.0 * h);
                let (d, v) = (w.derivatives(t), w.velocity_derivatives(t));
                let pairs = [
                    (d.c_skip, slope(&|t| w.coefficients(t).c_skip)),
                    (d.c_out, slope(&|t| w.coefficients(t).c_out)),
                    (d.c_in, slope(&|t| w.coefficients(t).c_in)),
                    (d.c_noise / w.time_factor(), slope(&|t| w.coefficients(t).c_noise / w.time_factor())),
                    (v.on_x_t, slope(&|t| w.velocity(t).on_x_t)),
                    (v.on_net, slope(&|t| w.velocity(t).on_net)),
                ];
                for (got, want) in pairs {
                    // Truncation h²·|f‴|/6 ≤ 1e-10·14/6 (|f‴| of these weights), rounding 1e-16/h.
                    assert!((got - want).abs() < 1e-9, "{got} against {want} at {t:?}");
                }
            }
        }
    }

    #[test]
    fn velocity_and_clean_prediction_agree_with_their_definition() {
        let (x_t, net) = (0.7, -1.3);
        for t in grid().filter(|t| t.get() > 0.0) {
            let (s, c) = t.sin_cos();
            let (w, v) = (Wrapper::Rf.coefficients(t), Wrapper::Rf.velocity(t));
            let x_0 = w.c_skip * x_t + w.c_out * net;
            let f = v.on_x_t * x_t + v.on_net * net;
            assert!((x_0 - (c * x_t - s * f)).abs() < 1e-14, "at {t:?}");
        }
    }

    #[test]
    fn hostile_numbers_are_errors_with_a_remedy() {
        for bad in [f64::NAN, -1e-300, -1.0, f64::NEG_INFINITY] {
            assert!(TrigTime::new(bad).is_err() && RfTime::new(bad).is_err());
            assert!(Sigma::new(bad).is_err() && Shift::new(bad).is_err());
        }
        assert!(TrigTime::new(TrigTime::NOISE_F32.get().next_up()).is_err());
        assert!(RfTime::new(1f64.next_up()).is_err());
        assert!(Shift::new(0.0).is_err() && Shift::new(f64::INFINITY).is_err());
        assert!(
            Sigma::new(f64::INFINITY).is_ok() && Sigma(f64::INFINITY).start().is_err() && Sigma(0.0).start().is_err()
        );
        let message = RfTime::new(987.6).unwrap_err().to_string();
        assert!(message.contains("[0, 1]") && message.contains("987.6") && message.contains("divide"), "{message}");
    }

    #[test]
    fn configuration_goes_through_the_same_checks() {
        assert_eq!(serde_json::from_str::<Shift>("5").unwrap(), Shift(5.0));
        assert!(serde_json::from_str::<Shift>("-5").is_err());
        assert!(serde_json::from_str::<TrigTime>("1.6").is_err());
        assert_eq!(serde_json::to_string(&Sigma(80.0)).unwrap(), "80.0");
    }
}
