// Two things that ComfyUI's page does not do by itself for a pack's nodes.
import { app } from "../../scripts/app.js";

const ours = (name) => name?.startsWith("OmniPortrait");

// A line that a node tells of its result (ui.PreviewText) is shown inside it. The widget is never saved.
function showText(node, lines) {
  let widget = node.widgets?.find((each) => each.name === "result");
  if (!widget) {
    widget = window.comfyAPI.widgets.ComfyWidgets.STRING(node, "result", ["STRING", { multiline: true }], app).widget;
    widget.serialize = false;
    widget.options.serialize = false;
    if (widget.element) widget.element.readOnly = true;
  }
  widget.value = lines.join("\n");
  if (node.computeSize()[1] > node.size[1]) node.setSize([node.size[0], node.computeSize()[1]]);
}

app.registerExtension({
  name: "OmniPortrait",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!ours(nodeData.name)) return;
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (output?.text?.length) showText(this, output.text);
    };
  },

  // In Nodes 2.0 a node is at least as high as the classic look would draw it with all its inputs, also those that are
  // folded away: RB-Guidance would be two thirds empty. Said here that they are folded, it is as high as what it shows.
  nodeCreated(node) {
    if (!window.LiteGraph?.vueNodesMode || !ours(node.comfyClass)) return;
    for (const widget of node.widgets ?? []) if (widget.options?.advanced) widget.advanced = true;
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
});
