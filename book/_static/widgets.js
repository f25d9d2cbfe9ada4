// Runs between require.js and the widget manager. The manager would look for its icon font beside
// the page, and typesets labels through MathJax 2's Hub, which MathJax 3 no longer has.
requirejs.config({
  paths: { "@jupyter-widgets/html-manager/dist": new URL("vendor", document.currentScript.src).href },
});
addEventListener("load", () => {
  if (!window.MathJax) return;
  MathJax.Hub = { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
});
