use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, RwLock};

use crate::convolution::Convolution;
use crate::driver::{Driver, Module};
use crate::memory::{Account, Usage};
use crate::nvidia::Nvidia;
use crate::product::Product;
use crate::tensor_map::{TensorMap, Tiling};
use crate::{Error, Result, Source, Variant};

/// The ordinal of the device that is emulated on the host.
#[cfg(feature = "emulator")]
pub const EMULATED: usize = usize::MAX;

/// What a device is.
#[derive(Clone, Debug)]
pub struct Properties {
    /// Its name.
    pub name: String,
    /// Its compute capability, major and minor.
    pub capability: (i32, i32),
    /// Its memory in bytes.
    pub memory: usize,
    /// Its streaming multiprocessors.
    pub multiprocessors: usize,
    /// The most shared memory of a block, in bytes.
    pub shared: usize,
}

type Key = (&'static str, Vec<(String, String)>);

/// A device in use. Opened once for a process; cloning is free.
#[derive(Clone, Debug)]
pub struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    driver: Box<dyn Driver>,
    account: Account,
    modules: RwLock<HashMap<Key, Loaded>>,
    /// The most memory that may be in use.
    limit: AtomicUsize,
    /// What would be launched, while nothing is.
    noted: Mutex<Option<Vec<Variant>>>,
}

#[derive(Clone)]
struct Loaded(Arc<dyn Module>);

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Module")
    }
}

static OPEN: LazyLock<Mutex<HashMap<usize, Gpu>>> = LazyLock::new(Default::default);

impl Gpu {
    /// Device `ordinal` of the driver.
    ///
    /// # Errors
    /// If there is no driver, no such device, it is too old, or a library of CUDA is missing: with what to do.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        let mut open = OPEN.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(gpu) = open.get(&ordinal) {
            return Ok(gpu.clone());
        }
        let driver: Box<dyn Driver> = match ordinal {
            #[cfg(feature = "emulator")]
            EMULATED => Box::new(crate::emulated::Emulated::new()?),
            _ => Box::new(Nvidia::open(ordinal)?),
        };
        let gpu = Gpu(Arc::new(Inner {
            driver,
            account: Account::default(),
            modules: RwLock::default(),
            limit: usize::MAX.into(),
            noted: Mutex::default(),
        }));
        open.insert(ordinal, gpu.clone());
        Ok(gpu)
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.0.driver
    }

    pub(crate) fn account(&self) -> &Account {
        &self.0.account
    }

    /// What the device is.
    pub fn properties(&self) -> &Properties {
        self.0.driver.properties()
    }

    /// What it runs on, with versions: the driver, the compiler, and the libraries, one of which may be absent.
    pub fn software(&self) -> String {
        self.0.driver.software()
    }

    /// Memory in use and the peak.
    pub fn usage(&self) -> Usage {
        Usage { total: self.properties().memory, ..self.0.account.usage() }
    }

    /// Lets no more memory be in use from now on, as if the device had no more.
    pub fn limit_memory(&self, bytes: usize) {
        self.0.limit.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.usage().live.saturating_add(bytes) <= self.0.limit.load(Ordering::Relaxed)
    }

    /// Starts a new measurement of the peak, from what is live now.
    pub fn reset_peak(&self) {
        self.0.account.reset_peak();
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// If some of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.0.driver.synchronize()
    }

    /// Seconds that the device spends on what `f` asks of it.
    ///
    /// # Errors
    /// As `f`, or if the work fails.
    pub fn time<E: From<Error>>(&self, f: impl FnOnce() -> std::result::Result<(), E>) -> std::result::Result<f64, E> {
        let before = self.0.driver.mark()?;
        f()?;
        let after = self.0.driver.mark()?;
        Ok(self.0.driver.between([before, after])? / 1000.0)
    }

    /// From now on times the library's plans for each product that comes for the first time, and keeps the fastest on disk: for
    /// this process and for later ones on such a device, which take it without timing anything.
    pub fn tune(&self, on: bool) {
        self.0.driver.tune(on);
    }

    /// C (+)= A·B (+ bias), or its GELU.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn multiply(&self, product: &Product) -> Result<()> {
        if product.m * product.n == 0 || self.is_noting() {
            return Ok(());
        }
        self.0.driver.multiply(product)
    }

    /// Whether [`Gpu::convolve`] computes a shape: by a library that may be absent, and may refuse it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn convolves(&self, convolution: &Convolution) -> Result<bool> {
        self.0.driver.convolves(convolution)
    }

    /// Y (+)= W∗X of a shape that [`Gpu::convolves`] takes, by the addresses of X, W and Y.
    ///
    /// # Errors
    /// If the shape is not taken, or the library fails.
    pub fn convolve(&self, convolution: &Convolution, addresses: [u64; 3]) -> Result<()> {
        if self.is_noting() {
            return Ok(());
        }
        self.0.driver.convolve(convolution, addresses)
    }

    /// The description of a tiled array for the bulk copy engine.
    ///
    /// # Errors
    /// If the device has none, or refuses the extents.
    pub fn tensor_map(&self, tiling: &Tiling) -> Result<TensorMap> {
        self.0.driver.tensor_map(tiling)
    }

    /// The sources that `f` would launch kernels of. Nothing is launched or multiplied meanwhile: memory that `f` asks for keeps
    /// its contents, and what it reads back is not to be used.
    pub fn noting<R>(&self, f: impl FnOnce() -> R) -> (R, Vec<Variant>) {
        *self.0.noted.lock().unwrap_or_else(|e| e.into_inner()) = Some(Vec::new());
        let r = f();
        (r, self.0.noted.lock().unwrap_or_else(|e| e.into_inner()).take().unwrap_or_default())
    }

    fn is_noting(&self) -> bool {
        self.0.noted.lock().unwrap_or_else(|e| e.into_inner()).is_some()
    }

    /// Notes a launch, if launches are noted and not made.
    pub(crate) fn note(&self, source: &Source, defines: &[(String, String)]) -> bool {
        let mut noted = self.0.noted.lock().unwrap_or_else(|e| e.into_inner());
        let Some(all) = &mut *noted else { return false };
        if !all.iter().any(|v| v.source.name() == source.name() && v.defines == defines) {
            all.push(Variant { source: *source, defines: defines.to_vec() });
        }
        true
    }

    /// Compiles sources, several at a time; `progress` is told how many are done.
    ///
    /// # Errors
    /// If one does not compile, which is a defect.
    pub fn prepare(&self, variants: &[Variant], progress: impl FnMut(usize) + Send) -> Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(variants.len());
        let (next, state) = (AtomicUsize::new(0), Mutex::new((0, progress)));
        let work = || -> Result<()> {
            while let Some(v) = variants.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.module(&v.source, &v.defines)?;
                let mut state = state.lock().unwrap_or_else(|e| e.into_inner());
                state.0 += 1;
                let done = state.0;
                (state.1)(done);
            }
            Ok(())
        };
        std::thread::scope(|s| {
            let all: Vec<_> = (0..threads).map(|_| s.spawn(work)).collect();
            // A thread that panicked met a defect of this program.
            let lost = |_| Err(Error::Call { call: "compiling", reason: "a thread died".into() });
            all.into_iter().try_for_each(|t| t.join().unwrap_or_else(lost))
        })
    }

    pub(crate) fn module(&self, source: &Source, defines: &[(String, String)]) -> Result<Arc<dyn Module>> {
        let key = (source.name(), defines.to_vec());
        if let Some(found) = self.0.modules.read().unwrap_or_else(|e| e.into_inner()).get(&key) {
            return Ok(found.0.clone());
        }
        let module = self.0.driver.load(source.name(), &source.text(), defines)?;
        self.0.modules.write().unwrap_or_else(|e| e.into_inner()).insert(key, Loaded(module.clone()));
        Ok(module)
    }
}
