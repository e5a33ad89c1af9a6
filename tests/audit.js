// What a reader would see of one page: answers an object that tests/test_browser.py judges.
async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const article = document.querySelector("article") || document.querySelector("main");
  const wide = document.documentElement.clientWidth;
  if (window.MathJax) await MathJax.startup.promise;
  await document.fonts.ready;

  // A viewer is drawn when one of its canvases holds more than one colour.
  const drawn = (frame) => [...frame.contentDocument.querySelectorAll("canvas")].some((canvas) => {
    if (!canvas.width || !canvas.height) return false;
    const colours = new Uint32Array(
      canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    return new Set(colours).size > 8;
  });
  const frames = [...document.querySelectorAll("iframe")];
  const printed = matchMedia("print").matches;
  for (let tries = 0; !printed && tries < 50 && !frames.every(drawn); tries++) await wait(100);

  const images = [...document.querySelectorAll("img")].filter((img) => img.getClientRects().length);
  for (const img of images) {
    img.loading = "eager";
    await img.decode().catch(() => null);
  }
  // On paper nothing scrolls: what a box cuts off is lost.
  const scrolls = (part) => !printed && /auto|scroll/.test(getComputedStyle(part).overflowX)
    && part.getBoundingClientRect().right <= wide + 1;
  const inBox = (part) => part && (scrolls(part) || inBox(part.parentElement));
  const cut = [...article.querySelectorAll("*")].filter((part) => {
    const box = part.getBoundingClientRect();
    return box.width > 1 && box.right > wide + 1 && !inBox(part) && !part.closest("mjx-assistive-mml");
  });
  const text = article.cloneNode(true);
  text.querySelectorAll("code, pre, script, iframe, mjx-container").forEach((part) => part.remove());
  const seen = (part) => part.getClientRects().length > 0;
  return {
    title: document.title,
    broken: images.filter((img) => !img.naturalWidth).map((img) => img.getAttribute("src")),
    images: images.length,
    mute: images.filter((img) => !img.alt.trim()).map((img) => img.getAttribute("src")),
    maths: document.querySelectorAll(".math").length,
    unset: [...document.querySelectorAll(".math")]
      .filter((part) => !part.querySelector("mjx-container svg")).map((part) => part.textContent),
    failed: document.querySelectorAll("[data-mjx-error]").length,
    raw: text.textContent.match(/\$\$|\\\(|\\\[|\\begin\{/g) || [],
    frames: frames.length,
    blank: frames.filter((frame) => !drawn(frame)).length,
    framesShown: frames.filter(seen).length,
    wide, overflow: document.documentElement.scrollWidth - wide,
    cut: cut.slice(0, 8).map((part) => `${part.tagName}.${part.className} ${part.textContent.trim().slice(0, 40)}`
      + ` right ${Math.round(part.getBoundingClientRect().right)}`),
    ids: [...document.querySelectorAll("[id]")].map((part) => part.id),
    links: [...document.querySelectorAll("a[href]")].map((part) => part.href),
    size: parseFloat(getComputedStyle(article.querySelector("p") || article).fontSize),
  };
}
