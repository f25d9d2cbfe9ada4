// Runs between require.js and the widget manager. The manager would look for its icon font beside
// the page, and typesets labels through MathJax 2's Hub, which MathJax 3 no longer has.
requirejs.config({
  paths: { "@jupyter-widgets/html-manager/dist": new URL("vendor", document.currentScript.src).href },
});
addEventListener("load", () => {
  if (!window.MathJax) return;
  MathJax.Hub = { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
});

// The manager gives a screen reader neither the slider's name nor its value, only an index, nor what
// its picture shows.
function nameParts(box) {
  const [name, value] = ["label", "readout"].map(
    (part) => box.querySelector(`.widget-${part}`).textContent.trim());
  const handle = box.querySelector("[role=slider]");
  handle.setAttribute("aria-label", name);
  handle.setAttribute("aria-valuetext", value);
  for (const picture of box.querySelectorAll("img")) picture.alt = `The picture for ${name} ${value}`;
}
new MutationObserver(() => {
  document.querySelectorAll(".widget-vbox:has([role=slider])").forEach(nameParts);
}).observe(document, { subtree: true, childList: true, characterData: true });
