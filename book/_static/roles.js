// Lists that a screen reader would not take for such: an argument a line in a signature is a <dl>
// without a <dt>, and a list of references has no list items.
addEventListener("DOMContentLoaded", () => {
  for (const list of document.querySelectorAll("dl:not(:has(> dt)), .citation-list")) {
    list.setAttribute("role", "list");
    for (const item of list.children) item.setAttribute("role", "listitem");
  }
});
