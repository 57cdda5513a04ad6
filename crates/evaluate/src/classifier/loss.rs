use fewstep_data::Caption;
use fewstep_tensor::Tensor;

use super::model::{LOGITS, heads, targets};
use crate::Result;

/// A loss and its derivative.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Of each sample, f64.
    pub per_sample: Vec<f64>,
    /// The derivative of the samples' sum by the logits, [B, [`LOGITS`]], in the logits' dtype.
    pub cotangent: Tensor,
}

/// Softmax cross-entropy, added over the three heads:
///
///   ℓ = Σ_head (ln Σⱼ exp zⱼ − z_target),  ∂ℓ/∂z = softmax(z) − onehot(target).
///
/// Logits [B, [`LOGITS`]]; all arithmetic is in f64.
///
/// # Errors
/// If there is not one row of logits for each caption.
pub fn cross_entropy(logits: &Tensor, captions: &[Caption]) -> Result<Loss> {
    if logits.shape() != [captions.len(), LOGITS] {
        let expected = format!("logits [{}, {LOGITS}]", captions.len());
        return Err(fewstep_ops::Error::input("cross_entropy", expected, logits.shape()).into());
    }
    let mut z = logits.to_vec_f64();
    let per_sample = z.chunks_exact_mut(LOGITS).zip(captions).map(|(z, &caption)| {
        let heads = heads().into_iter().zip(targets(caption));
        heads.map(|(head, target)| cross_entropy_of_head(&mut z[head], target)).sum()
    });
    let per_sample = per_sample.collect();
    let cotangent = Tensor::from_vec(z, logits.shape())?.to_dtype(logits.dtype());
    Ok(Loss { per_sample, cotangent })
}

/// The loss of one head; its logits become their cotangent.
fn cross_entropy_of_head(z: &mut [f64], target: usize) -> f64 {
    // The largest logit goes first, so that no exponential overflows; a NaN stays one in the sum.
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let of_target = z[target] - largest;
    z.iter_mut().for_each(|z| *z = (*z - largest).exp());
    let sum: f64 = z.iter().sum();
    z.iter_mut().for_each(|z| *z /= sum);
    z[target] -= 1.0;
    sum.ln() - of_target
}

#[cfg(test)]
mod tests {
    use fewstep_tensor::random::{Purpose, Stream};

    use super::*;

    fn logits(seed: u64, n: usize) -> Vec<f64> {
        Stream::new(seed, Purpose::Check, 0).normal(0, n * LOGITS).into_iter().map(|z| 3.0 * f64::from(z)).collect()
    }

    fn loss(z: &[f64], captions: &[Caption]) -> Loss {
        cross_entropy(&Tensor::from_vec(z.to_vec(), &[captions.len(), LOGITS]).unwrap(), captions).unwrap()
    }

    #[test]
    fn the_cotangent_is_the_central_difference_of_the_loss() {
        let captions: Vec<Caption> = Caption::all().step_by(123).collect();
        let mut z = logits(1, captions.len());
        let cotangent = loss(&z, &captions).cotangent.to_vec_f64();
        let h = 1e-5;
        for i in 0..z.len() {
            let mut at = |by: f64| {
                let before = z[i];
                z[i] += by;
                let sum: f64 = loss(&z, &captions).per_sample.iter().sum();
                z[i] = before;
                sum
            };
            let difference = (at(h) - at(-h)) / (2.0 * h);
            assert!((difference - cotangent[i]).abs() < 1e-8, "logit {i}: {difference} and {}", cotangent[i]);
        }
    }

    #[test]
    fn equal_logits_cost_the_entropy_of_a_guess() {
        let caption = Caption::all().next().unwrap();
        let got = loss(&[7.0; LOGITS], &[caption]).per_sample[0];
        assert!((got - (10.0 * 6.0 * 8.0f64).ln()).abs() < 1e-12, "{got}");
    }

    #[test]
    fn extreme_logits_give_a_finite_loss() {
        let caption = Caption::all().next().unwrap();
        let mut z = vec![-1e4; LOGITS];
        z[1] = 1e4;
        let got = loss(&z, &[caption]);
        assert!(got.per_sample[0] > 2e4 && got.per_sample[0].is_finite());
        assert!(got.cotangent.to_vec_f64().iter().all(|x| x.is_finite()));
    }

    #[test]
    fn logits_of_another_shape_are_refused() {
        let z = Tensor::from_vec(vec![0.0; LOGITS], &[1, LOGITS]).unwrap();
        assert!(cross_entropy(&z, &Caption::all().take(2).collect::<Vec<_>>()).is_err());
    }
}
