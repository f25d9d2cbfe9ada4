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
// its picture shows, which the label's tooltip says where there is one.
function nameParts(box) {
  const [label, readout] = ["label", "readout"].map((part) => box.querySelector(`.widget-${part}`));
  const [name, value] = [label, readout].map((part) => part.textContent.trim());
  const handle = box.querySelector("[role=slider]");
  handle.setAttribute("aria-label", name);
  handle.setAttribute("aria-valuetext", value);
  const shown = label.title && label.title !== name ? label.title : "The picture";
  for (const picture of box.querySelectorAll("img")) picture.alt = `${shown}; ${name}: ${value}`;
}
new MutationObserver(() => {
  document.querySelectorAll(".widget-vbox:has([role=slider])").forEach(nameParts);
}).observe(document, { subtree: true, childList: true, characterData: true });
