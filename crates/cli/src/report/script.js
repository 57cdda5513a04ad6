// Animations begin when they are first shown, so those further down the page would lag behind. Whenever pictures come into
// view, all that are in view begin again together: a new fragment makes a browser decode an address anew.
(() => {
  const shown = new Set();
  let timer = 0, round = 0;
  const restart = async () => {
    round += 1;
    const mine = round;
    const pairs = [...shown].map((old) => {
      const fresh = old.cloneNode();
      fresh.src = old.src.split("#")[0] + "#" + mine;
      return [old, fresh];
    });
    await Promise.allSettled(pairs.map(([, fresh]) => fresh.decode()));
    if (mine !== round) return;
    for (const [old, fresh] of pairs) {
      watch.unobserve(old);
      shown.delete(old);
      known.add(fresh);
      old.replaceWith(fresh);
      watch.observe(fresh);
    }
  };
  // Pictures that restart has put in place: that they are in view is no news.
  const known = new WeakSet();
  const watch = new IntersectionObserver((entries) => {
    let news = false;
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) { shown.delete(target); known.delete(target); continue; }
      shown.add(target);
      news ||= !known.has(target);
    }
    if (news) { clearTimeout(timer); timer = setTimeout(restart, 120); }
  });
  for (const picture of document.querySelectorAll(".gallery img")) watch.observe(picture);
})();
